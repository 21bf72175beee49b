//! The tables, as `migrations` made them.

use std::path::Path;

use sqlx::migrate::Migrator;

use crate::platform::database::{self, OpenError};

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Refuses the database of a newer version, without changing anything.
pub async fn check_version(path: &Path) -> Result<(), OpenError> {
    database::check_version(path, &MIGRATIONS).await
}

/// In tests: a database as the version with this migration left it.
#[cfg(test)]
pub(super) async fn of_version(path: &Path, version: i64) -> sqlx::SqliteConnection {
    use sqlx::{ConnectOptions as _, sqlite::SqliteConnectOptions};
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    let earlier = MIGRATIONS.iter().filter(|migration| migration.version <= version).cloned().collect();
    Migrator::with_migrations(earlier).run(&mut connection).await.unwrap();
    connection
}
