//! Examples in the OpenAPI document.

use serde_json::{Value, json};

use crate::domain::Code;

const ID: &str = "01920f3c-5a7e-7c11-9d2b-8f0e4a6b1c2d";
const DIGEST: &str = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
const OLD_DIGEST: &str = "sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9";

pub fn vm_request() -> Value {
    json!({
        "template": "micro",
        "name": "build-4711",
        "runner": { "kind": "command", "command": "make test", "env": { "CI": "true" } },
        "labels": { "team": "core" },
        "network": "internet",
        "queue_timeout_seconds": 600,
        "budgets": { "lifetime_seconds": 3600 }
    })
}

pub fn github_vm_request() -> Value {
    json!({
        "template": "macos-tahoe",
        "runner": { "kind": "github", "scope": "acme/app", "labels": ["self-hosted", "macos"] }
    })
}

pub fn buildkite_vm_request() -> Value {
    json!({
        "template": "ubuntu-24.04",
        "runner": {
            "kind": "buildkite", "source": "kite", "scope": "acme", "labels": ["queue=linux"],
            "job": "0193a6d2-7c1e-4f6a-9b1d-3f5a7c9e1b2d"
        }
    })
}

pub fn gitea_vm_request() -> Value {
    json!({
        "template": "micro",
        "runner": { "kind": "gitea", "source": "forge", "scope": "acme/app", "labels": ["linux"] }
    })
}

pub fn job_record() -> Value {
    json!({
        "source": "github",
        "id": 29679449526_u64,
        "repository": "acme/app",
        "run_id": 10182376534_u64,
        "run_attempt": 1,
        "name": "build (macos-15)",
        "workflow": "ci",
        "status": "completed",
        "conclusion": "success",
        "url": "https://github.com/acme/app/actions/runs/10182376534/job/29679449526",
        "started_at": "2026-11-02T09:00:31Z",
        "completed_at": "2026-11-02T09:04:10Z"
    })
}

pub fn jobs() -> Value {
    let mut job = job_record();
    let more = json!({
        "labels": ["self-hosted", "macos"],
        "pool": "macos",
        "vm_id": "01920f3c-7c90-7e33-9f4d-0b2a6c8d3e4f",
        "made_vm_id": "01920f3c-7c90-7e33-9f4d-0b2a6c8d3e4f",
        "runner_name": "vm-1f2e3d4c5b6a-1",
        "tries": 1,
        "failed_vms": 0,
        "given_up": null,
        "not_before": "2026-11-02T09:00:17Z",
        "heard": "webhook",
        "seen_at": "2026-11-02T09:00:02Z",
        "updated_at": "2026-11-02T09:04:11Z"
    });
    if let (Some(job), Some(more)) = (job.as_object_mut(), more.as_object()) {
        job.extend(more.clone());
    }
    json!({ "items": [job], "next_cursor": null })
}

pub fn deliveries() -> Value {
    json!({
        "items": [{
            "guid": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
            "event": "workflow_job",
            "action": "queued",
            "result": "worked",
            "detail": null,
            "received_at": "2026-11-02T09:00:02Z",
            "worked_at": "2026-11-02T09:00:02Z"
        }]
    })
}

pub fn pool_request() -> Value {
    json!({
        "template": "macos-tahoe",
        "job_source": "github",
        "scope": "acme",
        "labels": ["self-hosted", "macos"],
        "repositories": ["acme/app", "acme/lib"],
        "max_vms": 2,
        "network": "internet",
        "budgets": { "lifetime_seconds": 7200 }
    })
}

pub fn pool() -> Value {
    json!({
        "name": "macos",
        "source": "api",
        "template": "macos-tahoe",
        "job_source": "github",
        "scope": "acme",
        "labels": ["self-hosted", "macos"],
        "group": null,
        "repositories": ["acme/app", "acme/lib"],
        "max_vms": 2,
        "warm": 0,
        "cpus": null,
        "memory_mib": null,
        "network": "internet",
        "budgets": own_budgets(7200),
        "enabled": true,
        "vms": { "queued": 1, "live": 2 },
        "jobs_waiting": 3,
        "last_error": null,
        "created_at": "2026-11-20T08:00:00.000Z",
        "updated_at": "2026-11-20T08:00:00.000Z"
    })
}

fn own_budgets(lifetime_seconds: u32) -> Value {
    json!({
        "clone_seconds": null,
        "boot_seconds": null,
        "configure_seconds": null,
        "registration_seconds": null,
        "idle_seconds": null,
        "unobserved_seconds": null,
        "heartbeat_seconds": null,
        "lifetime_seconds": lifetime_seconds,
        "drain_seconds": null,
        "drain_cap_seconds": null,
        "settle_seconds": null,
        "stop_grace_seconds": null,
        "max_attempts": null
    })
}

fn budgets() -> Value {
    json!({
        "queue_seconds": 600,
        "clone_seconds": 600,
        "boot_seconds": 300,
        "configure_seconds": 120,
        "registration_seconds": 300,
        "idle_seconds": 3600,
        "unobserved_seconds": 21600,
        "heartbeat_seconds": 180,
        "lifetime_seconds": 3600,
        "drain_seconds": 300,
        "drain_cap_seconds": 900,
        "settle_seconds": 10,
        "stop_grace_seconds": 10,
        "max_attempts": 3
    })
}

pub fn vm() -> Value {
    json!({
        "id": ID,
        "name": "build-4711",
        "state": "queued",
        "generation": 1,
        "template": "micro",
        "template_digest": DIGEST,
        "driver": "qemu",
        "os": "linux",
        "cpus": 2,
        "memory_mib": 2048,
        "network": "internet",
        "labels": { "team": "core" },
        "pool": null,
        "created_by": "01920f3c-6b8f-7d22-8e3c-9a1f5b7c2d3e",
        "runner": { "kind": "command", "status": "none", "separate_users": null, "started": "no", "github": null, "gitea": null, "buildkite": null },
        "queue": { "reason": "slot", "position": 3, "deadline": "2026-11-20T09:10:00.000Z", "kept_vms": 0, "pull": null },
        "deadline": { "budget": "queue", "at": "2026-11-20T09:10:00.000Z" },
        "paused_since": null,
        "budgets": budgets(),
        "attempt": 0,
        "ready": null,
        "ssh": null,
        "announced_by": null,
        "announced_at": null,
        "end_signal": null,
        "outcome": null,
        "job": null,
        "jobs": [],
        "last_fault": null,
        "timeline": [{ "state": "queued", "at": "2026-11-20T09:00:00.000Z" }],
        "created_at": "2026-11-20T09:00:00.000Z",
        "updated_at": "2026-11-20T09:00:00.000Z",
        "deleted_at": null
    })
}

fn with(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}

pub fn created_vm() -> Value {
    with(vm(), json!({ "callback_token": format!("mfv_{}_…", ID.replace('-', "")) }))
}

pub fn deleted_vm() -> Value {
    with(
        vm(),
        json!({
            "state": "deleted",
            "generation": 12,
            "pool": "linux",
            "created_by": null,
            "runner": {
                "kind": "github",
                "status": "finished",
                "separate_users": true,
                "started": "yes",
                "github": {
                    "source": "github",
                    "scope": "acme/app",
                    "labels": ["self-hosted", "linux"],
                    "group": null,
                    "registration": "managed",
                    "job": null,
                    "name": "mayfly-01920f3c5a7e-1",
                    "id": 8123
                },
                "gitea": null,
                "buildkite": null
            },
            "queue": null,
            "deadline": null,
            "attempt": 1,
            "ready": { "check": "runner-agent", "version": null, "state": 2, "seconds": 6.4 },
            "announced_by": "hook",
            "announced_at": "2026-11-20T09:03:10.120Z",
            "end_signal": "runner_finished",
            "outcome": { "result": "completed" },
            "jobs": [{
                "source": "github",
                "id": 29679449526_u64,
                "repository": "acme/app",
                "run_id": 10847312345_u64,
                "run_attempt": 1,
                "name": "test",
                "workflow": "ci",
                "status": "completed",
                "conclusion": "success",
                "url": "https://github.com/acme/app/actions/runs/10847312345/job/29679449526",
                "started_at": "2026-11-20T09:00:14.000Z",
                "completed_at": "2026-11-20T09:03:11.000Z"
            }],
            "timeline": [
                { "state": "queued", "at": "2026-11-20T09:00:00.000Z" },
                { "state": "cloning", "at": "2026-11-20T09:00:00.012Z" },
                { "state": "booting", "at": "2026-11-20T09:00:00.240Z" },
                { "state": "configuring", "at": "2026-11-20T09:00:09.871Z" },
                { "state": "running", "at": "2026-11-20T09:00:10.402Z" },
                { "state": "draining", "at": "2026-11-20T09:03:10.120Z" },
                { "state": "stopping", "at": "2026-11-20T09:03:12.011Z" },
                { "state": "deleting", "at": "2026-11-20T09:03:12.377Z" },
                { "state": "deleted", "at": "2026-11-20T09:03:12.455Z" }
            ],
            "updated_at": "2026-11-20T09:03:12.455Z",
            "deleted_at": "2026-11-20T09:03:12.455Z"
        }),
    )
}

pub fn event() -> Value {
    json!({
        "seq": 42,
        "vm_id": ID,
        "vm_name": "build-4711",
        "generation": 2,
        "at": "2026-11-20T09:00:00.012Z",
        "state": "cloning",
        "type": "slot_taken"
    })
}

pub fn template_event() -> Value {
    json!({
        "seq": 41,
        "template": "micro",
        "at": "2026-11-20T08:00:00.000Z",
        "type": "registered",
        "digest": DIGEST
    })
}

pub fn stream() -> Value {
    json!({ "id": "42", "event": "slot_taken", "data": event().to_string() })
}

pub fn template_request() -> Value {
    json!({
        "name": "micro",
        "disk": "/var/lib/images/micro.qcow2",
        "kernel": "/var/lib/images/vmlinuz",
        "initramfs": "/var/lib/images/initrd.img",
        "cmdline": "console=ttyS0 root=/dev/vda",
        "cpus": 2,
        "memory_mib": 2048
    })
}

pub fn push_request() -> Value {
    json!({ "image": "registry.example.com/ci/micro:1" })
}

pub fn pushed() -> Value {
    json!({
        "image": "registry.example.com/ci/micro:1",
        "digest": DIGEST,
        "bytes_uploaded": 61_865_984_u64,
        "bytes_reused": 2_113_929_u64,
        "layers": 5,
    })
}

pub fn template() -> Value {
    json!({
        "name": "micro",
        "digest": DIGEST,
        "driver": "qemu",
        "os": "linux",
        "arch": "x86_64",
        "disk_format": "qcow2",
        "disk_virtual_bytes": 2147483648_u64,
        "size_bytes": 73400320,
        "kernel": true,
        "initramfs": true,
        "firmware": false,
        "ssh_key": false,
        "ssh_password": false,
        "cmdline": "console=ttyS0 root=/dev/vda",
        "cpus": 2,
        "memory_mib": 2048,
        "handover": "seed",
        "user": "runner",
        "network": null,
        "ready": { "http": { "port": 8080, "path": "/health" }, "interval_seconds": 2, "budget_seconds": 60 },
        "budgets": budgets(),
        "own_budgets": own_budgets(3600),
        "created_at": "2026-11-20T08:00:00.000Z",
        "names": ["micro", "micro-latest"],
        "since": "2026-11-20T08:00:00.000Z",
        "why": "registered",
        "previous": [{ "digest": OLD_DIGEST, "since": "2026-11-13T08:00:00.000Z", "why": "registered" }],
        "pin": null,
        "last_used_at": "2026-11-20T09:00:00.000Z",
        "verified_at": null,
        "damage": null
    })
}

pub fn import_request() -> Value {
    json!({ "name": "sequoia", "layout": "shoes-vz", "path": "/opt/myshoes/vz/templates/macos-15" })
}

pub fn imported() -> Value {
    json!({
        "template": with(template(), json!({ "name": "sequoia", "names": ["sequoia"], "driver": "tart", "os": "macos" })),
        "notices": [{ "field": "ecid", "detail": "was found in AuxiliaryStorage: nothing else has it" }]
    })
}

pub fn export_request() -> Value {
    json!({ "layout": "macosvm", "path": "/Users/ci/vms/sequoia", "identity": "keep", "mac": "regenerate" })
}

pub fn exported() -> Value {
    json!({
        "files": [
            { "path": "/Users/ci/vms/sequoia/AuxiliaryStorage", "bytes": 34603008 },
            { "path": "/Users/ci/vms/sequoia/Disk.img", "bytes": 50000000000_u64 },
            { "path": "/Users/ci/vms/sequoia/vm.json", "bytes": 1104 }
        ],
        "notices": [{ "field": "cpuCountMin", "detail": "is 2 and does not go along: the layout knows no minimum" }]
    })
}

pub fn pruned() -> Value {
    json!({
        "dry_run": true,
        "removed": [{
            "kind": "template",
            "digest": OLD_DIGEST,
            "names": ["micro"],
            "bytes": 73400320,
            "last_used_at": "2026-11-06T17:00:00.000Z",
            "why": "the name micro has moved on, and no vm or pin needs it"
        }],
        "kept": [{
            "kind": "template",
            "digest": DIGEST,
            "names": ["micro"],
            "bytes": 73400320,
            "last_used_at": "2026-11-20T09:00:00.000Z",
            "why": "the name micro points at it"
        }],
        "freed_bytes": 73400320,
        "total_bytes": 146800640,
        "available_bytes": 53687091200_u64
    })
}

pub fn verified() -> Value {
    json!({
        "name": "micro",
        "digest": DIGEST,
        "sound": true,
        "bytes": 89128960,
        "bytes_read": 73400320,
        "faults": [],
        "next": null
    })
}

pub fn point_request() -> Value {
    json!({ "digest": DIGEST, "why": "the tests pass with it" })
}

pub fn pull_request() -> Value {
    json!({
        "name": "macos",
        "image": "ghcr.io/cirruslabs/macos-tahoe-base:latest",
        "canary": { "command": "xcodebuild -version", "timeout_seconds": 900 }
    })
}

pub fn pull() -> Value {
    json!({
        "id": "01920f3c-7c90-7e33-9f4d-0b2a6c8d3e4f",
        "image": "ghcr.io/cirruslabs/macos-tahoe-base:latest",
        "name": "macos",
        "state": "pulling",
        "generation": 2,
        "background": false,
        "canary": true,
        "previous_digest": null,
        "image_digest": DIGEST,
        "digest": null,
        "vm_id": null,
        "progress": {
            "bytes_done": 5368709120_u64,
            "bytes_total": 26843545600_u64,
            "chunks_done": 21,
            "chunks_total": 100,
            "bytes_per_second": 104857600,
            "eta_seconds": 205
        },
        "error": null,
        "failures": 0,
        "retry_at": null,
        "deadline": "2026-11-20T14:00:00.000Z",
        "discarded": false,
        "created_at": "2026-11-20T08:00:00.000Z",
        "updated_at": "2026-11-20T08:00:01.000Z",
        "ended_at": null
    })
}

pub fn cancelled_pull() -> Value {
    with(
        pull(),
        json!({
            "state": "cancelled",
            "generation": 3,
            "progress": {
                "bytes_done": 5368709120_u64,
                "bytes_total": 26843545600_u64,
                "chunks_done": 21,
                "chunks_total": 100,
                "bytes_per_second": null,
                "eta_seconds": null
            },
            "updated_at": "2026-11-20T08:01:00.000Z",
            "ended_at": "2026-11-20T08:01:00.000Z"
        }),
    )
}

pub fn watch_request() -> Value {
    json!({
        "image": "ghcr.io/cirruslabs/macos-tahoe-base:latest",
        "every_seconds": 3600,
        "canary": { "command": "xcodebuild -version", "timeout_seconds": 900 }
    })
}

pub fn watch() -> Value {
    with(
        watch_request(),
        json!({
            "template": "macos",
            "created_at": "2026-11-20T08:00:00.000Z",
            "looked_at": "2026-11-20T09:00:00.000Z",
            "next_look_at": "2026-11-20T09:58:12.345Z",
            "image_digest": null,
            "pull": null,
            "error": null,
            "failures": 0
        }),
    )
}

pub fn host() -> Value {
    json!({
        "observed": true,
        "observed_at": "2026-11-20T09:00:00.000Z",
        "observed_age_seconds": 0,
        "capacity": { "macos_slots": 0, "linux_slots": 4, "cpus": 8, "memory_mib": 16384 },
        "leased": { "macos": 0, "linux": 1, "cpus": 2, "memory_mib": 2048 },
        "foreign": { "macos": 0, "linux": 0, "cpus": 0, "memory_mib": 0 },
        "slots": {
            "macos": { "total": 0, "ours": 0, "foreign": 0, "free": 0 },
            "linux": { "total": 4, "ours": 1, "foreign": 0, "free": 3 }
        },
        "queued": 0,
        "kept": [],
        "drivers": [{
            "name": "qemu",
            "usable": true,
            "version": "QEMU emulator version 10.0.2",
            "arch": "x86_64",
            "accelerator": "kvm",
            "note": null,
            "fault": null,
            "remedy": null,
            "listed_at": "2026-11-20T09:00:00.000Z",
            "networks": [
                { "mode": "isolated", "enforceable": true, "remedy": null, "default_for": ["command", "none"] },
                { "mode": "internet", "enforceable": true, "remedy": null, "default_for": ["script", "github"] },
                { "mode": "host", "enforceable": true, "remedy": null, "default_for": [] }
            ]
        }],
        "faults": [],
        "instances": [{
            "driver": "qemu",
            "name": format!("mayfly-{ID}"),
            "vm_id": ID,
            "running": true,
            "os": "linux",
            "cpus": 2,
            "memory_mib": 2048
        }]
    })
}

pub fn token() -> Value {
    json!({
        "id": "01920f3c-6b8f-7d22-8e3c-9a1f5b7c2d3e",
        "name": "autoscaler",
        "scope": "create",
        "created_at": "2026-11-20T08:00:00.000Z",
        "revoked_at": null,
        "expires_at": "2027-11-20T08:00:00.000Z",
        "last_used_at": "2026-11-21T09:30:00.000Z",
        "limits": {
            "sources": null,
            "github_scopes": ["acme/*"],
            "github_labels": null,
            "templates": ["micro", "macos-*"],
            "images": null,
            "max_cpus": 4,
            "max_memory_mib": 8192,
            "max_disk_bytes": null,
            "max_live_vms": 4
        }
    })
}

pub fn token_request() -> Value {
    json!({
        "name": "team-a",
        "scope": "create",
        "expires_at": "2027-11-20T08:00:00Z",
        "limits": {"github_scopes": ["acme/*"], "templates": ["micro", "macos-*"], "max_cpus": 4, "max_live_vms": 4}
    })
}

pub fn created_token() -> Value {
    with(token(), json!({ "token": "mfa_…" }))
}

pub fn login() -> Value {
    json!({
        "registry": "registry.example.com:5000",
        "username": "ci",
        "source": "login",
        "saved_at": "2026-11-20T08:00:00.000Z"
    })
}

pub fn kept_login() -> Value {
    with(login(), json!({ "checked": true, "notices": [] }))
}

pub fn problem(code: Code) -> Value {
    let mut problem = json!({
        "type": format!("/problems/{code}"),
        "title": code.title(),
        "status": code.status(),
        "detail": code.remedy(),
        "instance": "/vms",
        "code": code,
        "request_id": "7d1f0c1e-52a4-4f0e-9a53-0d6d3a1f4c55",
        "retryable": code.retryable()
    });
    if code == Code::RequestInvalid {
        problem["errors"] = json!([{ "pointer": "/cpus", "detail": "invalid type: string \"two\", expected u32" }]);
    }
    problem
}

pub fn local_token() -> Value {
    let mut token = token();
    for (field, value) in [
        ("name", json!("local-admin")),
        ("scope", json!("admin")),
        ("expires_at", Value::Null),
        ("last_used_at", Value::Null),
        ("limits", Value::Null),
    ] {
        token[field] = value;
    }
    token
}
