//! Which network modes a driver can enforce, and which of them a vm gets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{Code, Error, Result},
    network::NetworkMode,
    runner::RunnerKind,
};

/// What a driver can enforce on this host with its settings. By default: every mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkSupport {
    /// Of each mode that cannot be enforced: what to do so that it can be.
    #[serde(default)]
    remedies: BTreeMap<NetworkMode, String>,
    /// The mode of vms for which nothing else is set. `None`: it follows from the kind of the runner.
    #[serde(default)]
    usual: Option<NetworkMode>,
}

/// A mode that was set, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkWish<'a> {
    pub mode: NetworkMode,
    pub source: NetworkWishSource<'a>,
}

/// Where a mode was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkWishSource<'a> {
    Request,
    Pool(&'a str),
    Template(&'a str),
}

impl NetworkSupport {
    /// This mode cannot be enforced. `remedy`: an instruction, without a final full stop.
    pub fn without(mut self, mode: NetworkMode, remedy: impl Into<String>) -> Self {
        self.remedies.insert(mode, remedy.into());
        self
    }

    /// The driver's settings decide the mode of vms for which nothing else is set.
    pub fn by_default(self, usual: Option<NetworkMode>) -> Self {
        Self { usual, ..self }
    }

    /// What to do so that the mode can be enforced. `None`: it can be.
    pub fn remedy(&self, mode: NetworkMode) -> Option<&str> {
        self.remedies.get(&mode).map(String::as_str)
    }

    /// The mode of a vm with this runner for which no mode was set: the driver's, else the strictest one in which the
    /// runner can work; if that cannot be enforced, the next more open one.
    pub fn default_for(&self, runner: RunnerKind) -> NetworkMode {
        self.enforceable_from(self.usual.unwrap_or(runner.strictest_network()))
    }

    /// The mode of vms of versions without modes, whose records have none.
    pub fn of_earlier_vms(&self) -> NetworkMode {
        self.enforceable_from(self.usual.unwrap_or(NetworkMode::Isolated))
    }

    fn enforceable_from(&self, strictest: NetworkMode) -> NetworkMode {
        let mut open_enough = NetworkMode::ALL.into_iter().filter(|mode| *mode >= strictest);
        open_enough.find(|mode| self.remedy(*mode).is_none()).unwrap_or(NetworkMode::Host)
    }

    /// The mode of a vm. A mode that was set is never replaced by another one.
    pub fn resolve(&self, driver: &str, wish: Option<NetworkWish<'_>>, runner: RunnerKind) -> Result<NetworkMode> {
        let Some(NetworkWish { mode, source }) = wish else { return Ok(self.default_for(runner)) };
        match self.remedy(mode) {
            None => Ok(mode),
            Some(remedy) => {
                let who = match source {
                    NetworkWishSource::Request => "the request asks".to_owned(),
                    NetworkWishSource::Pool(name) => format!("the pool {name} asks"),
                    NetworkWishSource::Template(name) => format!("the template {name} asks"),
                };
                Err(not_enforceable(driver, mode, &who, remedy))
            }
        }
    }

    /// Refuses a mode that a template may not ask for on this host.
    pub fn check(&self, driver: &str, mode: Option<NetworkMode>) -> Result<()> {
        match mode.and_then(|mode| Some((mode, self.remedy(mode)?))) {
            None => Ok(()),
            Some((mode, remedy)) => Err(not_enforceable(driver, mode, "the template asks", remedy)),
        }
    }
}

fn not_enforceable(driver: &str, mode: NetworkMode, who: &str, remedy: &str) -> Error {
    let detail = format!("{who} for `network: {mode}`, which the driver {driver} cannot enforce here: {remedy}");
    Error::new(Code::NetworkNotEnforceable, detail).field("/network", remedy)
}

#[cfg(test)]
mod tests {
    use NetworkMode::{Host, Internet, Isolated};

    use super::*;

    const KINDS: [RunnerKind; 4] = [RunnerKind::Command, RunnerKind::None, RunnerKind::GitHub, RunnerKind::Script];

    fn only(modes: &[NetworkMode]) -> NetworkSupport {
        let others = NetworkMode::ALL.into_iter().filter(|mode| !modes.contains(mode));
        others.fold(NetworkSupport::default(), |can, mode| can.without(mode, format!("make {mode} possible")))
    }

    #[test]
    fn the_default_is_the_strictest_mode_that_works_and_can_be_enforced() {
        let all = NetworkSupport::default();
        for (can, expected, earlier) in [
            (all.clone(), [Isolated, Isolated, Internet, Internet], Isolated),
            (only(&[Internet, Host]), [Internet; 4], Internet),
            (only(&[Isolated, Host]), [Isolated, Isolated, Host, Host], Isolated),
            (only(&[Host]), [Host; 4], Host),
            // As with the settings of a driver that decide for all vms.
            (all.clone().by_default(Some(Isolated)), [Isolated; 4], Isolated),
            (all.clone().by_default(Some(Internet)), [Internet; 4], Internet),
            (all.by_default(Some(Host)), [Host; 4], Host),
            (only(&[Host]).by_default(Some(Isolated)), [Host; 4], Host),
        ] {
            assert_eq!(KINDS.map(|kind| can.default_for(kind)), expected, "{can:?}");
            assert_eq!(KINDS.map(|kind| can.resolve("d", None, kind).unwrap()), expected, "{can:?}");
            assert_eq!(can.of_earlier_vms(), earlier, "{can:?}");
        }
    }

    #[test]
    fn a_mode_that_was_set_is_used_or_refused() {
        let wish = |mode| Some(NetworkWish { mode, source: NetworkWishSource::Request });
        let decided = NetworkSupport::default().by_default(Some(Isolated));
        for (can, mode) in NetworkMode::ALL.into_iter().map(|mode| (&decided, mode)) {
            for kind in KINDS {
                assert_eq!(can.resolve("d", wish(mode), kind).unwrap(), mode);
            }
            assert!(can.check("d", Some(mode)).is_ok());
        }
        let open = only(&[Host]);
        assert_eq!(open.resolve("tart", wish(Host), RunnerKind::Command).unwrap(), Host);
        for (source, who) in [
            (NetworkWishSource::Request, "the request asks for"),
            (NetworkWishSource::Pool("macos"), "the pool macos asks for"),
            (NetworkWishSource::Template("tahoe"), "the template tahoe asks for"),
        ] {
            let error = open.resolve("tart", Some(NetworkWish { mode: Internet, source }), RunnerKind::GitHub);
            let error = error.unwrap_err();
            assert_eq!(error.code, Code::NetworkNotEnforceable);
            assert!(error.detail.starts_with(who), "{error}");
            assert!(error.detail.ends_with("the driver tart cannot enforce here: make internet possible"), "{error}");
            assert_eq!(
                (error.fields[0].pointer.as_str(), error.fields[0].detail.as_str()),
                ("/network", "make internet possible")
            );
        }
        assert!(open.check("tart", None).is_ok());
        assert_eq!(open.check("tart", Some(Isolated)).unwrap_err().code, Code::NetworkNotEnforceable);
    }
}
