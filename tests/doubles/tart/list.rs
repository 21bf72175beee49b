//! `tart list` and `tart get`.

use serde_json::{Value, json};

use crate::{cli::Source, control::Control, failure::Failure, home::Home, json, oci, output, vm::Vm};

const GB: u64 = 1_000_000_000;

struct Row {
    source: &'static str,
    name: String,
    vm: Vm,
}

pub fn list(home: &Home, control: &Control, source: Option<Source>, as_json: bool, quiet: bool) -> Result<(), Failure> {
    let mut rows = Vec::new();
    if source != Some(Source::Oci) {
        rows.extend(home.local()?.into_iter().map(|vm| Row { source: "local", name: vm.name.clone(), vm }));
    }
    if source != Some(Source::Local) {
        rows.extend(oci::cached(home).into_iter().map(|(name, vm)| Row { source: "OCI", name, vm }));
    }
    if quiet {
        for row in rows {
            output::line(&row.name);
        }
        return Ok(());
    }
    let accessed = |vm: &Vm| {
        let at = jiff::Timestamp::from_second(vm.accessed()).unwrap_or_default();
        at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    if as_json {
        let items = rows.iter().map(|row| {
            let state = row.vm.state();
            let mut item = json!({
                "Source": row.source,
                "Name": row.name,
                "Disk": row.vm.apparent_size() / GB,
                "Size": row.vm.allocated_size() / GB,
                "Running": state == crate::vm::State::Running,
                "State": state.as_str(),
            });
            if control.at_least(2, 31) {
                item["Accessed"] = accessed(&row.vm).into();
            } else {
                item["SizeOnDisk"] = (row.vm.allocated_size() / GB).into();
            }
            item
        });
        output::line(&json::pretty(&Value::Array(items.collect())));
        return Ok(());
    }
    let mut table = vec![["Source", "Name", "Disk", "Size", "Accessed", "State"].map(str::to_owned)];
    table.extend(rows.iter().map(|row| {
        let hours = (crate::leases::now() - row.vm.accessed()) / 3600;
        [
            row.source.to_owned(),
            row.name.clone(),
            (row.vm.apparent_size() / GB).to_string(),
            (row.vm.allocated_size() / GB).to_string(),
            if hours < 1 { "just now".to_owned() } else { format!("{hours} hours ago") },
            row.vm.state().as_str().to_owned(),
        ]
    }));
    print(&table);
    Ok(())
}

fn print<const N: usize>(table: &[[String; N]]) {
    let widths: Vec<usize> =
        (0..N).map(|i| table.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    for row in table {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        output::line(&cells.join(" "));
    }
}

pub fn get(home: &Home, name: &str, as_json: bool) -> Result<(), Failure> {
    let vm = Vm::open(home, name)?;
    let config = vm.config()?;
    let state = vm.state();
    let display =
        format!("{}x{}{}", config.display.width, config.display.height, config.display.unit.as_deref().unwrap_or(""));
    let memory = config.memory_size >> 20;
    let disk = vm.apparent_size() / GB;
    #[allow(clippy::cast_precision_loss)]
    let size = format!("{:.3}", vm.allocated_size() as f64 / GB as f64);
    let running = state == crate::vm::State::Running;
    if as_json {
        output::line(&json::pretty(&json!({
            "OS": config.os, "CPU": config.cpu_count, "Memory": memory, "Disk": disk, "DiskFormat": config.disk_format,
            "Size": size, "Display": display, "Running": running, "State": state.as_str(),
        })));
        return Ok(());
    }
    print(&[
        ["OS", "CPU", "Memory", "Disk", "DiskFormat", "Size", "Display", "State"].map(str::to_owned),
        [
            config.os,
            config.cpu_count.to_string(),
            memory.to_string(),
            disk.to_string(),
            config.disk_format,
            size,
            display,
            state.as_str().to_owned(),
        ],
    ]);
    Ok(())
}
