//! Whether this version can read a database, seen without opening it for use.

use std::path::Path;

use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};

use super::{MIGRATIONS, OpenError};

/// Refuses the database of a newer version. Changes nothing, also no file beside it, so what is only in its write-ahead log is
/// not seen. A database that cannot be read is not refused here: opening it finds the reason.
pub async fn check_version(path: &Path) -> Result<(), OpenError> {
    if !path.exists() {
        return Ok(());
    }
    let applied = applied(path).await.unwrap_or_default();
    match applied.into_iter().find(|version| !MIGRATIONS.version_exists(*version)) {
        None => Ok(()),
        Some(version) => Err(OpenError::Newer {
            path: path.display().to_string(),
            cause: sqlx::migrate::MigrateError::VersionMissing(version).to_string(),
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

/// In tests: a database as the version with this migration left it.
#[cfg(test)]
pub(super) async fn of_version(path: &Path, version: i64) -> sqlx::SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    let earlier = MIGRATIONS.iter().filter(|migration| migration.version <= version).cloned().collect();
    sqlx::migrate::Migrator::with_migrations(earlier).run(&mut connection).await.unwrap();
    connection
}
