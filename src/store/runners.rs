//! Runners whose registration was requested. Mayfly removes only these from CI servers.

use jiff::Timestamp;

use super::{
    Ledger, Reader, Result,
    rows::{parse_id, unreadable},
};
use crate::domain::{
    RemoteId, SourceName, Vm, VmId,
    orphaned_runner::{OrphanedRunner, is_over},
    source_runner::SourceScope,
};

/// One registration. `Debug` shows no secret: the configuration is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerRow {
    pub name: String,
    pub at: SourceScope,
    pub vm_id: VmId,
    pub attempt: u32,
    /// `None`: the server was asked, and its answer is not known.
    pub runner_id: Option<RemoteId>,
    pub sealed: Option<Vec<u8>>,
    pub asked_at: Timestamp,
    pub seen_at: Option<Timestamp>,
}

impl RunnerRow {
    pub fn orphaned_runner(&self) -> OrphanedRunner {
        OrphanedRunner {
            name: self.name.clone(),
            source: self.at.source.clone(),
            scope: self.at.scope.clone(),
            runner_id: self.runner_id.clone(),
            vm_id: self.vm_id,
            asked_at: self.asked_at,
        }
    }
}

impl Ledger {
    /// Stores the row before each request to register this runner.
    pub async fn registration_requested(
        &self,
        name: &str,
        at: &SourceScope,
        vm: VmId,
        attempt: u32,
        asked_at: Timestamp,
    ) -> Result<()> {
        let (source, scope) = (at.source.to_string(), at.scope.slug());
        let (name, vm, asked_at) = (name.to_owned(), vm.to_string(), asked_at.as_millisecond());
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    sqlx::query!(
                        "INSERT INTO runners (name, source, scope, vm_id, attempt, asked_at)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                         ON CONFLICT (name) DO UPDATE SET asked_at = excluded.asked_at",
                        name,
                        source,
                        scope,
                        vm,
                        attempt,
                        asked_at
                    )
                    .execute(&mut *db)
                    .await?;
                    Ok(())
                })
            })
            .await
    }

    /// Stores the server's answer. The registration is stored only if the vm is still in that attempt and may still need
    /// it.
    pub async fn runner_registered(&self, name: &str, runner_id: &RemoteId, sealed: Vec<u8>) -> Result<()> {
        let name = name.to_owned();
        let id = runner_id.to_string();
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    sqlx::query!(
                        "UPDATE runners SET runner_id = ?1, seen_at = NULL, sealed = CASE WHEN EXISTS (
                             SELECT 1 FROM vms WHERE id = runners.vm_id
                                AND state IN ('cloning', 'booting', 'configuring')
                                AND json_extract(record, '$.attempt') = runners.attempt) THEN ?2 END
                         WHERE name = ?3",
                        id,
                        sealed,
                        name
                    )
                    .execute(&mut *db)
                    .await?;
                    Ok(())
                })
            })
            .await
    }

    /// The server showed the runner as online or busy.
    pub async fn runner_seen(&self, name: &str, at: Timestamp) -> Result<()> {
        let (name, at) = (name.to_owned(), at.as_millisecond());
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    sqlx::query!("UPDATE runners SET seen_at = ? WHERE name = ? AND seen_at IS NULL", at, name)
                        .execute(&mut *db)
                        .await?;
                    Ok(())
                })
            })
            .await
    }

    /// The runner is not registered any more, or never was.
    pub async fn runner_gone(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    sqlx::query!("DELETE FROM runners WHERE name = ?", name).execute(&mut *db).await?;
                    Ok(())
                })
            })
            .await
    }
}

struct StoredRunner {
    name: String,
    source: String,
    scope: String,
    vm_id: String,
    attempt: i64,
    runner_id: Option<String>,
    sealed: Option<Vec<u8>>,
    asked_at: i64,
    seen_at: Option<i64>,
}

impl TryFrom<StoredRunner> for RunnerRow {
    type Error = super::StoreError;

    fn try_from(row: StoredRunner) -> Result<RunnerRow> {
        let time = |ms| Timestamp::from_millisecond(ms).map_err(|e| unreadable(format!("a time: {e}")));
        Ok(RunnerRow {
            at: SourceScope {
                source: SourceName::new(&row.source).map_err(unreadable)?,
                scope: row.scope.parse().map_err(|e| unreadable(format!("a runner's scope: {e}")))?,
            },
            vm_id: parse_id(&row.vm_id)?,
            attempt: u32::try_from(row.attempt).map_err(|e| unreadable(format!("an attempt: {e}")))?,
            runner_id: row.runner_id.map(RemoteId::from_column),
            sealed: row.sealed,
            asked_at: time(row.asked_at)?,
            seen_at: row.seen_at.map(time).transpose()?,
            name: row.name,
        })
    }
}

impl Reader {
    pub async fn runner(&self, name: &str) -> Result<Option<RunnerRow>> {
        let row = sqlx::query_as!(
            StoredRunner,
            "SELECT name, source, scope, vm_id, attempt, runner_id, sealed, asked_at, seen_at FROM runners WHERE name = ?",
            name
        )
        .fetch_optional(self.pool())
        .await?;
        row.map(RunnerRow::try_from).transpose()
    }

    /// Oldest first.
    pub async fn runners(&self) -> Result<Vec<RunnerRow>> {
        sqlx::query_as!(
            StoredRunner,
            "SELECT name, source, scope, vm_id, attempt, runner_id, sealed, asked_at, seen_at FROM runners ORDER BY asked_at"
        )
        .fetch_all(self.pool())
        .await?
        .into_iter()
        .map(RunnerRow::try_from)
        .collect()
    }
}

impl Reader {
    /// Runners whose vm, or whose attempt of it, has ended, with the vm if its record exists. Oldest first.
    pub async fn orphaned_runners(&self) -> Result<Vec<(RunnerRow, Option<Vm>)>> {
        let mut orphans = Vec::new();
        for row in self.runners().await? {
            let vm = self.vm(row.vm_id).await?;
            if is_over(row.attempt, vm.as_ref()) {
                orphans.push((row, vm));
            }
        }
        Ok(orphans)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{
        domain::{
            Announcer, Budgets, Event, GuestOs, Handover, ResolvedSpec, TemplateSource,
            capacity::{Capacity, Usage},
            runner::RunnerKind,
            source_runner::{Registration, SourceRunner},
            vm_spec::VmSpec,
        },
        store::{
            self, Expect,
            ledger::{Admission, NewVm},
            placement::HostOffer,
        },
    };

    fn asked_for(queue_seconds: u32) -> NewVm {
        let spec = ResolvedSpec {
            template_digest: "sha256:0".into(),
            driver: "fake".into(),
            os: GuestOs::Linux,
            handover: Handover::Seed,
            cpus: 1,
            memory_mib: 100,
            network: None,
            ready: None,
        };
        let id = VmId::mint();
        let spec = VmSpec {
            id,
            name: id.to_string(),
            template: "t".into(),
            source: TemplateSource::Resolved(spec),
            runner: RunnerKind::GitHub,
            source_runner: Some(SourceRunner {
                source: SourceName::github(),
                scope: "acme".parse().unwrap(),
                labels: vec!["a".into()],
                group: None,
                registration: Registration::Managed,
                job: None,
            }),
            pool: None,
            created_by: None,
            labels: BTreeMap::new(),
            budgets: Budgets { queue_seconds, ..Budgets::default() },
            instance_per_attempt: true,
        };
        let room = HostOffer {
            capacity: Capacity {
                macos_slots: 0,
                linux_slots: 3,
                cpus: 100,
                memory_mib: 10_000,
                max_kept_seconds: 3600,
            },
            ceilings: Vec::new(),
            drivers: BTreeSet::from(["fake".to_owned()]),
            uncounted: vec![],
            foreign: Usage::default(),
            ours: vec![],
            queued: None,
        };
        let admission = match queue_seconds {
            0 => Admission::Slot(Ok(Box::new(room))),
            _ => Admission::Queue { max_queued: 5 },
        };
        NewVm { spec, request_hash: [1; 32].into(), idempotency_key: None, quota: None, sealed: None, admission }
    }

    fn number() -> u64 {
        u64::from(u32::MAX) + 7
    }

    fn acme() -> SourceScope {
        SourceScope { source: SourceName::new("forge").unwrap(), scope: "acme".parse().unwrap() }
    }

    /// Registers a runner of this attempt, and returns its row.
    async fn registered(store: &store::Store, vm: VmId, at: Timestamp) -> RunnerRow {
        let name = format!("{vm}-1");
        store.ledger.registration_requested(&name, &acme(), vm, 1, at).await.unwrap();
        store.ledger.runner_registered(&name, &number().into(), vec![1, 2]).await.unwrap();
        store.reader.runner(&name).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_configuration_is_kept_only_while_it_may_be_handed_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(&dir.path().join("mayfly.db")).await.unwrap();
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        let vm = store.ledger.create_vm(asked_for(0), at).await.unwrap().vm().id();
        let row = registered(&store, vm, at).await;
        assert_eq!((row.sealed, row.runner_id, row.attempt), (Some(vec![1, 2]), Some(number().into()), 1));
        assert_eq!((row.vm_id, row.asked_at, row.seen_at, &row.at), (vm, at, None, &acme()));
        let forced = Event::EndForced { by: Announcer::Admin };
        store.ledger.apply(vm, Expect::Anything, forced, at).await.unwrap();
        let row = store.reader.runners().await.unwrap().remove(0);
        assert_eq!((&row.sealed, row.runner_id.is_some()), (&None, true));
        let orphans = store.reader.orphaned_runners().await.unwrap();
        assert_eq!(orphans.iter().map(|(row, vm)| (row, vm.is_some())).collect::<Vec<_>>(), [(&row, true)]);
        // The answer arrived after the vm had left the attempt.
        assert_eq!(registered(&store, vm, at).await.sealed, None);

        let waits = store.ledger.create_vm(asked_for(60), at).await.unwrap().vm().id();
        assert_eq!(registered(&store, waits, at).await.sealed, None);
        store.ledger.runner_seen(&format!("{vm}-1"), at).await.unwrap();
        assert_eq!(store.reader.runner(&format!("{vm}-1")).await.unwrap().unwrap().seen_at, Some(at));
        store.ledger.runner_gone(&format!("{vm}-1")).await.unwrap();
        assert_eq!(store.reader.runners().await.unwrap().len(), 1);
    }
}
