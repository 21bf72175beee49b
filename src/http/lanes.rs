//! Request permits of the guest API, per vm: the requests of one guest cannot block those of another.
//!
//! A vm has permits for its reports (its events, the end of its job) and others for the rest (reads, long polls,
//! downloads). Only the rest, and requests without a vm's token, also need one of the listener's permits: so a report
//! is served whatever other guests do.

use std::{collections::HashMap, sync::Arc};

use axum::http::Method;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::VmId;

/// Concurrent reports of one vm. Its wrapper and its hooks need two or three.
const REPORTS: usize = 8;
/// Concurrent other requests of one vm.
const OTHERS: usize = 8;
/// Concurrent requests whose token is missing or wrong.
const STRANGERS: usize = 64;
/// Above this number of vms, those without a request are removed.
const REMEMBERED: usize = 256;

#[derive(Clone)]
pub struct Lanes {
    vms: Arc<Mutex<HashMap<VmId, Places>>>,
    strangers: Arc<Semaphore>,
}

struct Places {
    reports: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Places {
    fn unused(&self) -> bool {
        self.reports.available_permits() == REPORTS && self.others.available_permits() == OTHERS
    }
}

/// The permit of an admitted request, until it is dropped.
pub struct Place {
    /// It has its vm's own permit, and needs none of the listener's.
    pub is_report: bool,
    _permit: OwnedSemaphorePermit,
}

impl Lanes {
    pub fn new() -> Self {
        Self { vms: Arc::default(), strangers: Arc::new(Semaphore::new(STRANGERS)) }
    }

    /// A permit for a request with this vm's token, or without a vm's token. `None`: all permits of that caller are
    /// in use.
    pub fn enter(&self, vm: Option<VmId>, method: &Method) -> Option<Place> {
        let Some(vm) = vm else {
            let permit = self.strangers.clone().try_acquire_owned().ok()?;
            return Some(Place { is_report: false, _permit: permit });
        };
        let is_report = matches!(*method, Method::POST | Method::DELETE);
        let mut vms = self.vms.lock();
        if vms.len() >= REMEMBERED {
            vms.retain(|_, places| !places.unused());
        }
        let places = vms.entry(vm).or_insert_with(|| Places {
            reports: Arc::new(Semaphore::new(REPORTS)),
            others: Arc::new(Semaphore::new(OTHERS)),
        });
        let places = if is_report { &places.reports } else { &places.others };
        let permit = places.clone().try_acquire_owned().ok()?;
        Some(Place { is_report, _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_fills_its_own_places_only_and_is_forgotten_afterwards() {
        let lanes = Lanes::new();
        let (loud, calm) = (VmId::mint(), VmId::mint());
        let held: Vec<_> = (0..REPORTS).map(|_| lanes.enter(Some(loud), &Method::POST).unwrap()).collect();
        assert!(lanes.enter(Some(loud), &Method::DELETE).is_none());
        assert!(!lanes.enter(Some(loud), &Method::GET).unwrap().is_report);
        assert!(lanes.enter(Some(calm), &Method::DELETE).unwrap().is_report);
        drop(held);
        assert!(lanes.enter(Some(loud), &Method::POST).is_some());
        for _ in 0..3 * REMEMBERED {
            lanes.enter(Some(VmId::mint()), &Method::POST).unwrap();
        }
        assert!(lanes.vms.lock().len() <= REMEMBERED);
        let strangers: Vec<_> = (0..STRANGERS).map(|_| lanes.enter(None, &Method::POST).unwrap()).collect();
        assert!(!strangers[0].is_report && lanes.enter(None, &Method::GET).is_none());
    }
}
