//! Converts `[pools]` to the domain's type.

use std::collections::BTreeMap;

use super::{domain_sections::PoolTable, given::GivenSettings};
use crate::{
    domain::{Budgets, BudgetsPatch, Error, Pool, SourceKind, SourceName, TemplateOverrides, capacity::Capacity},
    registry::oci::reference::{Reference, ReferenceError},
};

/// The pools that are complete; what is wrong with the others is noted.
pub(super) fn complete(tables: BTreeMap<String, PoolTable>, given: &mut GivenSettings) -> Vec<Pool> {
    let mut pools = Vec::new();
    for (name, PoolTable { section: table, budgets }) in tables {
        let path = path(&name);
        for (field, missing) in [
            ("template", table.template.is_none()),
            ("scope", table.scope.is_none()),
            ("labels", table.labels.is_empty()),
        ] {
            // One that was given and cannot be used was noted already.
            if missing && !given.given(&format!("{path}.{field}")) {
                given.refuse(&path, format!("needs `{field}`"));
            }
        }
        let (Some(template), Some(scope)) = (table.template, table.scope) else { continue };
        pools.push(Pool {
            name,
            template,
            job_source: table.job_source,
            scope,
            labels: table.labels,
            group: table.group,
            repositories: table.repositories,
            max_vms: table.max_vms,
            warm: table.warm,
            cpus: table.cpus,
            memory_mib: table.memory_mib,
            network: table.network,
            budgets,
            enabled: table.enabled,
        });
    }
    pools
}

pub(super) fn check(
    pools: &[Pool],
    kind_of: impl Fn(&SourceName) -> Option<SourceKind>,
    usual: &Budgets,
    capacity: &Capacity,
    given: &mut GivenSettings,
) {
    for pool in pools {
        let path = path(&pool.name);
        let for_source = match kind_of(&pool.job_source) {
            Some(kind) => pool.runner().check_for(kind, ""),
            None => {
                let what = format!("no source of jobs has the name {0}: set `[sources.{0}]`", pool.job_source);
                given.refuse(&format!("{path}.job_source"), what);
                Ok(())
            }
        };
        // Missing labels were noted.
        let checked = if pool.labels.is_empty() { Ok(()) } else { pool.check() };
        let asked = TemplateOverrides {
            cpus: pool.cpus,
            memory_mib: pool.memory_mib,
            network: pool.network,
            budgets: BudgetsPatch {
                keep_on_failure_seconds: pool.budgets.keep_on_failure_seconds,
                ..BudgetsPatch::default()
            },
            queue_seconds: usual.queue_seconds,
            limits: Default::default(),
        };
        let fits = asked.budgets_until_resolved(usual, capacity).map(drop);
        for error in [checked, for_source, fits].into_iter().filter_map(Result::err) {
            refuse(given, &path, &error);
        }
        if pool.template.contains('/')
            && let Err(error) = pool.template.parse::<Reference>()
        {
            let error: ReferenceError = error;
            given.refuse(&format!("{path}.template"), error.to_string());
        }
    }
}

/// As it is written in the file.
fn path(name: &str) -> String {
    format!("pools.\"{name}\"")
}

/// What is said of a request's field is said of the key that stands for it.
fn refuse(given: &mut GivenSettings, path: &str, error: &Error) {
    if error.fields.is_empty() {
        given.refuse(path, error.detail.clone());
    }
    for field in &error.fields {
        // Whatever follows the number of an entry is in the list.
        let parts = field.pointer.split('/').skip(1).take_while(|part| part.parse::<usize>().is_err());
        let key = format!("{path}.{}", parts.collect::<Vec<_>>().join("."));
        if given.given(&key) {
            given.refuse(&key, field.detail.clone());
        } else {
            given.refuse(path, field.detail.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError};

    fn config(text: &str, sets: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let sets = sets.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let slots = "[slots]\ncpus = 8\nmemory_mib = 8192\n";
        Config::from_sources("/data".into(), &format!("{text}\n{slots}"), [], sets).map_err(|error| match error {
            ConfigError::Settings(problems) => {
                problems.into_iter().map(|p| format!("{}: {}", p.place, p.message)).collect()
            }
            other => panic!("{other}"),
        })
    }

    const LEAST: &str = "[pools.macos]\ntemplate = \"tahoe\"\nscope = \"acme\"\nlabels = [\"macos\"]\n";

    #[test]
    fn pools_are_read_with_their_defaults() {
        let text = format!(
            "{LEAST}\n[pools.\"linux.big\"]\ntemplate = \"ghcr.io/acme/runner:1\"\nscope = \"enterprises/acme\"\n\
             labels = [\"linux\", \"big\"]\ngroup = \"builders\"\nrepositories = [\"acme/*\"]\nmax_vms = 3\ncpus = 4\n\
             memory_mib = 4096\nenabled = false\n[pools.\"linux.big\".budgets]\nlifetime_seconds = 7200\n"
        );
        let pools = config(&text, &[]).unwrap().pools;
        let names: Vec<_> = pools.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["linux.big", "macos"]);
        let (big, macos) = (&pools[0], &pools[1]);
        assert_eq!((big.max_vms, big.cpus, big.enabled), (3, Some(4), false));
        assert_eq!((big.budgets.lifetime_seconds, big.budgets.idle_seconds), (Some(7200), None));
        assert_eq!((big.scope.slug(), big.group.as_deref()), ("enterprises/acme".to_owned(), Some("builders")));
        assert_eq!((macos.max_vms, macos.cpus, macos.enabled, macos.warm), (10, None, true, 0));
        assert!(config("", &[]).unwrap().pools.is_empty());
    }

    #[test]
    fn the_example_is_usable() {
        let pools = config(include_str!("../../deploy/mayfly.toml"), &[]).unwrap().pools;
        let names: Vec<_> = pools.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["linux", "macos"]);
    }

    #[test]
    fn a_pool_is_changed_on_the_command_line() {
        let sets = [("pools.\"macos\".max_vms", "2"), ("pools.\"macos\".budgets.idle_seconds", "60")];
        let pool = config(LEAST, &sets).unwrap().pools.remove(0);
        assert_eq!((pool.max_vms, pool.budgets.idle_seconds), (2, Some(60)));
        // Shells remove the quotes, and this name does not need them.
        assert_eq!(config(LEAST, &[("pools.macos.max_vms", "3")]).unwrap().pools[0].max_vms, 3);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_key() {
        let cases = [
            ("[pools.macos]\nscope = \"acme\"\nlabels = [\"a\"]", "toml:1: `pools.\"macos\"`: needs `template`"),
            ("[pools.macos]\ntemplate = \"t\"\nlabels = [\"a\"]", "toml:1: `pools.\"macos\"`: needs `scope`"),
            ("[pools.macos]\ntemplate = \"t\"\nscope = \"acme\"", "toml:1: `pools.\"macos\"`: needs `labels`"),
            ("[pools]\nmacos = 3", "expected a table of settings, found a single value; name it by its name"),
            ("[pools.macos.budget]\nidle_seconds = 3", "unknown section `pools.\"macos\".budget`"),
            ("[pools.\"-x\"]\ntemplate = \"t\"\nscope = \"acme\"\nlabels = [\"a\"]", "beginning with a letter"),
        ];
        for (text, said) in cases {
            let problems = config(text, &[]).unwrap_err();
            assert!(problems.iter().any(|p| p.contains(said)), "{said}: {problems:?}");
        }
        for (line, said) in [
            ("warm = 1", "toml:5: `pools.\"macos\".warm`: vms that are booted ahead of jobs are not possible yet"),
            ("max_vms = 0", "toml:5: `pools.\"macos\".max_vms`: 1 to 10000"),
            ("group = \" \"", "toml:5: `pools.\"macos\".group`"),
            ("repositories = [\"acme/a\", \"evil/a\"]", "toml:5: `pools.\"macos\".repositories`: evil/a is not of"),
            ("cpus = 9", "toml:5: `pools.\"macos\".cpus`: 1 to 8"),
            ("label = \"x\"", "toml:5: unknown key `pools.\"macos\".label`; did you mean `labels`?"),
            ("budgets = 3", "toml:5: `pools.\"macos\".budgets`: expected a table of settings"),
            ("budgets.idle_seconds = 0", "toml:5: `pools.\"macos\".budgets.idle_seconds`: 1 to 2592000"),
            ("budgets.idle = 5", "unknown key `pools.\"macos\".budgets.idle`; did you mean `budgets.idle_seconds`?"),
        ] {
            let problems = config(&format!("{LEAST}{line}"), &[]).unwrap_err();
            assert_eq!(problems.len(), 1, "{line}: {problems:?}");
            assert!(problems[0].contains(said), "{line}: {problems:?}");
        }
        for (wrong, said) in [
            (LEAST.replace("\"acme\"", "\"a/b/c\""), "toml:3: `pools.\"macos\".scope`: expected `owner/name`"),
            (LEAST.replace("tahoe", "ghcr.io/acme/x@sha256:zz"), "toml:2: `pools.\"macos\".template`"),
            (LEAST.replace("[\"macos\"]", "[\"a,b\"]"), "toml:4: `pools.\"macos\".labels`: each 1 to 256"),
        ] {
            let problems = config(&wrong, &[]).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(said), "{problems:?}");
        }
    }
}
