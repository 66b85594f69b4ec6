#!/bin/sh
# Makes the roles and databases of a new PostgreSQL server, once: MLflow's (runs, registry, users) and Dagster's (runs, record of promotions).
# psql quotes the passwords, which come from the environment.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv dagster_password DAGSTER_DB_PASSWORD
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE ROLE dagster LOGIN PASSWORD :'dagster_password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE DATABASE dagster OWNER dagster;
CREATE DATABASE promotions OWNER dagster;
REVOKE CONNECT ON DATABASE mlflow, mlflow_auth, dagster, promotions FROM PUBLIC;
SQL
