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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection};

    use super::MIGRATIONS;

    /// Tables that do not grow with the vms, jobs and pulls of the past.
    const BOUNDED: [&str; 5] = ["leases", "pools", "runners", "tokens", "watches"];
    /// Indexes that contain only rows of vms, jobs, pulls and deliveries that have not ended.
    const LIVE: [&str; 5] = ["vms_live", "vms_queued", "jobs_open", "pulls_live", "webhook_deliveries_pending"];

    #[tokio::test]
    async fn no_checked_query_reads_all_of_a_table_that_grows() {
        let mut db = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        MIGRATIONS.run(&mut db).await.unwrap();
        let (mut queries, mut found) = (0, Vec::new());
        for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx")).unwrap() {
            let file: serde_json::Value = serde_json::from_slice(&fs::read(file.unwrap().path()).unwrap()).unwrap();
            let query = file["query"].as_str().unwrap();
            queries += 1;
            // A parameter without a value is NULL, which the plan does not depend on.
            let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}"));
            for step in sqlx::query(explain).fetch_all(&mut db).await.unwrap() {
                let step: String = step.get("detail");
                // SQLite makes an automatic index from all of the table.
                let automatic = step.contains(" AUTOMATIC ");
                let scan = step.strip_prefix("SCAN ").filter(|scan| *scan != "CONSTANT ROW");
                let Some(scan) = scan.or(automatic.then_some(step.as_str())) else { continue };
                let mut words = scan.split(' ');
                let (table, index) = (words.next().unwrap_or_default(), words.find(|word| LIVE.contains(word)));
                if automatic || (!BOUNDED.contains(&table) && index.is_none()) {
                    found.push(format!("{step}: {query}"));
                }
            }
        }
        assert!(queries > 50, "only {queries} queries were found");
        assert!(found.is_empty(), "these queries get slower with every vm of the past:\n{}", found.join("\n"));
    }
}
