//! Whether this version can read a database, seen without opening it for use.

use std::path::Path;

use sqlx::{
    ConnectOptions, Connection,
    migrate::{MigrateError, Migrator},
    sqlite::SqliteConnectOptions,
};

use super::OpenError;

/// Refuses the database of a newer version. Changes nothing, also no file beside it, so what is only in its write-ahead log is
/// not seen. A database that cannot be read is not refused here: opening it finds the reason.
pub async fn check_version(path: &Path, migrations: &Migrator) -> Result<(), OpenError> {
    if !path.exists() {
        return Ok(());
    }
    let applied = applied(path).await.unwrap_or_default();
    match applied.into_iter().find(|version| !migrations.version_exists(*version)) {
        None => Ok(()),
        Some(version) => Err(OpenError::Newer {
            path: path.display().to_string(),
            cause: MigrateError::VersionMissing(version).to_string(),
        }),
    }
}

async fn applied(path: &Path) -> sqlx::Result<Vec<i64>> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).immutable(true);
    let mut connection = options.connect().await?;
    let versions =
        sqlx::query_scalar("SELECT version FROM _sqlx_migrations ORDER BY version").fetch_all(&mut connection).await;
    connection.close().await?;
    versions
}
