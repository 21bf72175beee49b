//! Applies each vm's events in order and compares what comes of it with the vm's row: what `make campaign` asks of the database
//! that is left. Names the vms that differ, and exits with 1 when there are any.

use std::{io::Write, process::ExitCode};

use jiff::Timestamp;
use mayfly::domain::{Event, Vm};
use sqlx::{ConnectOptions, Row, SqliteConnection, sqlite::SqliteConnectOptions};

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Failure> {
    let path = std::env::args_os().nth(1).ok_or("give the path of a database that no service uses")?;
    let mut database = SqliteConnectOptions::new().filename(path).connect().await?;
    let rows = sqlx::query("SELECT id, record FROM vms ORDER BY id").fetch_all(&mut database).await?;
    let mut wrong = 0;
    for row in &rows {
        let (id, record): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let stored: Vm = serde_json::from_str(&record)?;
        let replayed = replay(&mut database, &id).await?;
        if replayed.as_ref() != Some(&stored) {
            wrong += 1;
            let replayed = serde_json::to_string(&replayed)?;
            writeln!(std::io::stdout(), "vm {id}: its row is {record}, and its events give {replayed}")?;
        }
    }
    writeln!(std::io::stdout(), "{} vms, {wrong} differ from their events", rows.len())?;
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn replay(database: &mut SqliteConnection, id: &str) -> Result<Option<Vm>, Failure> {
    let rows = sqlx::query("SELECT event, at FROM events WHERE vm_id = ? ORDER BY generation")
        .bind(id)
        .fetch_all(database)
        .await?;
    let mut log: Vec<(Event, Timestamp)> = Vec::new();
    for row in rows {
        let (event, at): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        log.push((serde_json::from_str(&event)?, Timestamp::from_millisecond(at)?));
    }
    Ok(Vm::replay(log.iter().map(|(event, at)| (event, *at))))
}
