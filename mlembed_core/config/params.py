"""The whole of ``configs/params.yaml``, with the checks that span sections. The command line reads it before any stage starts."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, model_validator

from mlembed_core.config.axes import resolve_axes
from mlembed_core.config.base import Name, Section, pick
from mlembed_core.config.data import CacheParams, Sources, TokenizerParams
from mlembed_core.config.evaluate import EvaluationParams, LocalSuite, Suites
from mlembed_core.config.gate import GateParams
from mlembed_core.config.model import BackboneParams, RandomBackbone
from mlembed_core.config.settings import Settings
from mlembed_core.config.train import TrainParams
from mlembed_core.errors import ConfigError


class Params(Section):
    """Everything that can change a result."""

    name: Name = Field(description="the model's name in the registry")
    seed: NonNegativeInt
    sources: Sources = Field(min_length=1)
    tokenizer: TokenizerParams
    backbone: BackboneParams
    cache: CacheParams = CacheParams()
    train: TrainParams
    settings: Settings = Field(min_length=1)
    evaluation: EvaluationParams
    suites: Suites = Field(min_length=1)
    gate: GateParams = GateParams()

    @model_validator(mode="after")
    def _sources_exist(self) -> Params:
        weights = self.train.source_weights
        named = [(f"train.source_weights.{name}", name) for name in (weights if isinstance(weights, dict) else {})]
        named += [(f"train.batch_size_of.{name}", name) for name in self.train.batch_size_of]
        for suite_name, suite in self.suites.items():
            if isinstance(suite, LocalSuite):
                named += [(f"suites.{suite_name}.tasks.{key}.source", task.source) for key, task in suite.tasks.items()]
        for path, name in named:
            try:
                pick(self.sources, name, path="sources")
            except ConfigError as error:
                raise ValueError(f"{path}: {error}") from None
        return self

    @model_validator(mode="after")
    def _every_kind_has_an_objective(self) -> Params:
        for name, source in self.sources.items():
            if source.kind not in self.train.objectives:
                raise ValueError(f"train.objectives.{source.kind}: missing, though sources.{name} is of that kind; add it")
        return self

    @model_validator(mode="after")
    def _the_gate_can_judge(self) -> Params:
        for name in self.gate.suites or ():
            try:
                suite = pick(self.suites, name, path="suites")
            except ConfigError as error:
                raise ValueError(f"gate.suites: {error}") from None
            if not suite.query_scores:
                raise ValueError(f"gate.suites: {name} keeps no scores of single questions; set suites.{name}.query_scores: true")
        return self

    @model_validator(mode="after")
    def _settings_fit_the_backbone(self) -> Params:
        if isinstance(self.backbone, RandomBackbone):
            for name, setting in self.settings.items():
                try:
                    resolve_axes(
                        name,
                        setting,
                        hidden=self.backbone.shape["hidden_size"],
                        layers=self.backbone.shape["num_hidden_layers"],
                    )
                except ConfigError as error:
                    raise ValueError(str(error)) from None
        return self
