//! `mayfly host`

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use super::{
    client::ApiClient,
    exit,
    failure::CommandFailure,
    output::{self, Colour, paint},
    responses::FaultResponse,
    table::{self, Cell, Column},
    text,
};

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostAnswer {
    observed: bool,
    observed_age_seconds: Option<u64>,
    capacity: HostLimits,
    slots: Option<SlotsAnswer>,
    leased: HostUsage,
    foreign: HostUsage,
    queued: i64,
    kept: Vec<KeptAnswer>,
    drivers: Vec<DriverAnswer>,
    faults: Vec<FaultAnswer>,
    instances: Vec<InstanceAnswer>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostLimits {
    macos_slots: u32,
    linux_slots: u32,
    cpus: u32,
    memory_mib: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SlotsAnswer {
    macos: SlotAnswer,
    linux: SlotAnswer,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SlotAnswer {
    total: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostUsage {
    macos: u32,
    linux: u32,
    cpus: u32,
    memory_mib: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DriverAnswer {
    name: String,
    usable: bool,
    version: Option<String>,
    accelerator: Option<String>,
    note: Option<String>,
    fault: Option<FaultResponse>,
    remedy: Option<String>,
    networks: Vec<NetworkAnswer>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NetworkAnswer {
    mode: String,
    enforceable: bool,
    remedy: Option<String>,
    default_for: Vec<String>,
}

impl NetworkAnswer {
    fn text(&self) -> String {
        match &self.remedy {
            _ if self.enforceable && self.default_for.is_empty() => "if it is asked for".to_owned(),
            _ if self.enforceable => format!("default for runners of kind {}", self.default_for.join(", ")),
            Some(remedy) => format!("cannot be enforced: {remedy}"),
            None => "cannot be enforced".to_owned(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FaultAnswer {
    code: String,
    detail: String,
    os: Option<String>,
    admits: Option<u32>,
    slots: Option<u32>,
    driver: Option<String>,
    step: Option<String>,
    age_seconds: u64,
    remedy: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KeptAnswer {
    id: String,
    name: String,
    until: Option<Timestamp>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct InstanceAnswer {
    driver: String,
    name: String,
    vm_id: Option<String>,
    running: bool,
    os: String,
    cpus: u32,
    memory_mib: u32,
}

const INSTANCES: [Column; 7] = [
    Column::new("INSTANCE").gives_way(),
    Column::new("WHOSE"),
    Column::new("STATE"),
    Column::new("DRIVER"),
    Column::new("OS"),
    Column::new("CPUS"),
    Column::new("MIB"),
];

pub(super) async fn run(client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let value: Value = client.get(&["host"], &[]).await?;
    if json {
        output::json(&value)?;
        return Ok(exit::OK);
    }
    let host: HostAnswer = client.view(&value)?;
    let row = |name: &str, limit: u32, ours: u32, foreign: u32| -> Vec<Cell> {
        let free = limit.saturating_sub(ours.saturating_add(foreign));
        vec![
            name.into(),
            limit.to_string().into(),
            ours.to_string().into(),
            foreign.to_string().into(),
            free.to_string().into(),
        ]
    };
    let (all, ours, foreign) = (&host.capacity, &host.leased, &host.foreign);
    // A kind of guest that no driver runs here has no slots, whatever is configured.
    let slots = |total: fn(&SlotsAnswer) -> u32, limit| host.slots.as_ref().map_or(limit, total);
    let guests = [
        ("Linux guests", slots(|slots| slots.linux.total, all.linux_slots), ours.linux, foreign.linux),
        ("macOS guests", slots(|slots| slots.macos.total, all.macos_slots), ours.macos, foreign.macos),
    ];
    let here = guests.into_iter().filter(|(_, limit, ours, foreign)| *limit > 0 || *ours > 0 || *foreign > 0);
    let mut rows: Vec<Vec<Cell>> = here.map(|(kind, limit, ours, foreign)| row(kind, limit, ours, foreign)).collect();
    rows.extend([
        row("cores", all.cpus, ours.cpus, foreign.cpus),
        row("memory (MiB)", all.memory_mib, ours.memory_mib, foreign.memory_mib),
    ]);
    let columns = ["", "LIMIT", "OURS", "FOREIGN", "FREE"].map(Column::new);
    output::bytes(table::table(&columns, rows, output::width()).as_bytes())?;
    output::line(&format!("\nqueued vms: {}", host.queued))?;
    for kept in &host.kept {
        let until = kept.until.map(|at| format!(" until {}", text::time(at))).unwrap_or_default();
        let line = format!("{} failed and is kept{until}: it holds a slot (mayfly vm delete {})", kept.name, kept.id);
        output::line(&text::plain(&line))?;
    }
    match host.observed_age_seconds {
        _ if !host.observed => output::line("the drivers are still being probed; nothing starts before")?,
        Some(age) => {
            let age = text::duration(SignedDuration::from_secs(age.cast_signed()));
            output::line(&format!("instances listed {age} ago"))?;
        }
        None => {}
    }
    for fault in &host.faults {
        let age = text::duration(SignedDuration::from_secs(fault.age_seconds.cast_signed()));
        let what = match (&fault.os, &fault.driver) {
            (Some(os), _) => {
                let (admits, slots) = (fault.admits.unwrap_or_default(), fault.slots.unwrap_or_default());
                format!("{admits} of {slots} {os} slots can be used, for {age}")
            }
            (None, driver) => {
                let step = match fault.step.as_deref() {
                    Some("cloning") => "cloned",
                    _ => "started",
                };
                format!("vms of the driver {} cannot be {step}, for {age}", driver.as_deref().unwrap_or("?"))
            }
        };
        output::line(&format!("\n{}  {}", paint("fault", Colour::Red), text::plain(&what)))?;
        output::line(&format!("  {}: {}", fault.code, text::plain(&fault.detail)))?;
        output::line(&format!("  {}", text::plain(&fault.remedy)))?;
    }
    for driver in &host.drivers {
        let state = if driver.usable { paint("usable", Colour::Green) } else { paint("not usable", Colour::Red) };
        let about: Vec<&str> =
            [driver.accelerator.as_deref(), driver.version.as_deref()].into_iter().flatten().collect();
        output::line(&format!("\ndriver {}", text::plain(&driver.name)))?;
        output::line(format!("  {state}  {}", text::plain(&about.join(", "))).trim_end())?;
        if let Some(fault) = &driver.fault {
            output::line(&format!("  {}: {}", fault.code, text::plain(&fault.detail)))?;
        }
        if let Some(remedy) = &driver.remedy {
            output::line(&format!("  {}", text::plain(remedy)))?;
        }
        if let Some(note) = &driver.note {
            output::line(&format!("  {}", text::plain(note)))?;
        }
        for network in &driver.networks {
            let line = format!("  network {:<8}  {}", network.mode, network.text());
            output::line(text::plain(&line).trim_end())?;
        }
    }
    if !host.instances.is_empty() {
        let row = |i: &InstanceAnswer| -> Vec<Cell> {
            vec![
                i.name.clone().into(),
                if i.vm_id.is_some() { "ours" } else { "foreign" }.into(),
                match i.running {
                    true => Cell::painted("running", Some(Colour::Green)),
                    false => Cell::painted("stopped", Some(Colour::Dim)),
                },
                i.driver.clone().into(),
                i.os.clone().into(),
                i.cpus.to_string().into(),
                i.memory_mib.to_string().into(),
            ]
        };
        output::line("")?;
        let rows = host.instances.iter().map(row).collect();
        output::bytes(table::table(&INSTANCES, rows, output::width()).as_bytes())?;
    }
    Ok(exit::OK)
}
