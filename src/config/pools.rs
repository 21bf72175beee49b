//! `[pools.<name>]` as the service takes them.

use super::{
    Config,
    keys::{PoolBudgets, PoolTable},
    source::Found,
};
use crate::{
    domain::{Asked, BudgetsPatch, Error, Pool},
    templates::oci::reference::{Reference, ReferenceError},
};

/// Those that can be; what is wrong with the others is noted.
pub(super) fn read(found: &mut Found) -> Vec<Pool> {
    let mut pools = Vec::new();
    for (name, path) in found.names("pools") {
        let table = PoolTable::read(&path, found);
        let budgets = PoolBudgets::read(&format!("{path}.budgets"), found).into();
        for (field, missing) in [
            ("template", table.template.is_none()),
            ("scope", table.scope.is_none()),
            ("labels", table.labels.is_empty()),
        ] {
            // One that was given and cannot be used was noted when it was read.
            if missing && !found.given(&format!("{path}.{field}")) {
                found.refuse_table(&path, format!("needs `{field}`"));
            }
        }
        let (Some(template), Some(scope)) = (table.template, table.scope) else { continue };
        pools.push(Pool {
            name,
            template,
            scope,
            labels: table.labels,
            group: table.group,
            repositories: table.repositories,
            max_vms: table.max_vms,
            warm: table.warm,
            cpus: table.cpus,
            memory_mib: table.memory_mib,
            budgets,
            enabled: table.enabled,
        });
    }
    pools
}

impl Config {
    pub(super) fn check_pools(&self, found: &mut Found) {
        let (usual, capacity) = (self.default_budgets(), self.capacity());
        for pool in &self.pools {
            let path = super::source::named_path("pools", &pool.name);
            // Missing labels were noted.
            let checked = if pool.labels.is_empty() { Ok(()) } else { pool.check() };
            let asked = Asked {
                cpus: pool.cpus,
                memory_mib: pool.memory_mib,
                budgets: BudgetsPatch::default(),
                queue_seconds: usual.queue_seconds,
            };
            let fits = asked.before(&usual, &capacity).map(drop);
            for error in [checked, fits].into_iter().filter_map(Result::err) {
                refuse(found, &path, &error);
            }
            if pool.template.contains('/')
                && let Err(error) = pool.template.parse::<Reference>()
            {
                let error: ReferenceError = error;
                found.refuse(&format!("{path}.template"), error.to_string());
            }
        }
    }
}

/// What is said of a request's field is said of the key that stands for it.
fn refuse(found: &mut Found, path: &str, error: &Error) {
    if error.fields.is_empty() {
        found.refuse_table(path, error.detail.clone());
    }
    for field in &error.fields {
        // Whatever follows the number of an entry is in the list.
        let parts = field.pointer.split('/').skip(1).take_while(|part| part.parse::<usize>().is_err());
        let key = format!("{path}.{}", parts.collect::<Vec<_>>().join("."));
        if found.given(&key) {
            found.refuse(&key, field.detail.clone());
        } else {
            found.refuse_table(path, field.detail.clone());
        }
    }
}

impl From<PoolBudgets> for BudgetsPatch {
    fn from(b: PoolBudgets) -> Self {
        Self {
            clone_seconds: b.clone_seconds,
            boot_seconds: b.boot_seconds,
            configure_seconds: b.configure_seconds,
            registration_seconds: b.registration_seconds,
            idle_seconds: b.idle_seconds,
            lifetime_seconds: b.lifetime_seconds,
            drain_seconds: b.drain_seconds,
            drain_cap_seconds: b.drain_cap_seconds,
            settle_seconds: b.settle_seconds,
            stop_grace_seconds: b.stop_grace_seconds,
            max_attempts: b.max_attempts,
        }
    }
}
