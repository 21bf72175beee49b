//! `tart run`: a process that is the VM.

mod agent;
pub mod exec;
mod guest;
mod options;
mod proto;
mod qemu;
mod slots;
mod socket;
mod ssh;

use std::{
    fs::{self, File},
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::sleep,
};

use crate::{
    cli::RunOptions,
    config::{self, Config},
    control::{Agent, Control, Guest as Kind, Lease},
    failure::Failure,
    home::Home,
    leases, locks, output,
    rules::Then,
    vm::Vm,
};
use guest::{End, Guest};

pub const CRASH: &str = "Error Domain=VZErrorDomain Code=1 \"Internal Virtualization error. The virtual machine stopped unexpectedly.\" UserInfo={NSLocalizedFailure=Internal Virtualization error., NSLocalizedFailureReason=The virtual machine stopped unexpectedly.}";

pub fn run(home: &Home, control: &Control, then: &Then, options: RunOptions) -> Result<u8, Failure> {
    // One thread, the one that the hypervisor is started from: the kernel ties a child to its parent's thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Double(format!("runtime: {e}")))?;
    let begun = Instant::now();
    runtime.block_on(tokio::task::LocalSet::new().run_until(life(home, control, then, &options, begun)))
}

async fn life(
    home: &Home,
    control: &Control,
    then: &Then,
    options: &RunOptions,
    begun: Instant,
) -> Result<u8, Failure> {
    // From here on a SIGINT does not kill, and nobody hears it yet.
    let mut unheard = signal(SignalKind::interrupt()).map_err(|e| Failure::io("signal", &e))?;

    options::validate(options, control)?;
    let vm = Vm::open(home, &options.name).map_err(Failure::in_validation)?;
    options::validate_for(options, control, &vm)?;

    let (config, _lock) = begin(home, control, then, options, &vm).await?;

    sleep(Duration::from_millis(then.start_after_ms)).await;
    // Ours until the process ends, however it ends.
    let _slot = match (&then.limit, config.is_darwin()) {
        (Some(limit), _) => return Err(slots::exceeded(&limit.names)),
        (None, true) => Some(slots::take(home, control, &vm)?),
        (None, false) => None,
    };
    if let Some(fails) = &then.start_fails {
        return fails.print();
    }
    let lease = then.lease.as_ref().unwrap_or(&control.lease);
    let kind = then.guest.as_ref().unwrap_or(&control.guest);
    let restored = vm.snapshot().exists();
    if restored {
        output::line("restoring VM state from a snapshot...");
        fs::remove_file(vm.snapshot()).map_err(|e| Failure::io("failed to restore", &e))?;
        output::line("resuming VM...");
    }
    // The directory first: a path to the socket would be too long, and the hypervisor's files go there too.
    std::env::set_current_dir(&vm.dir).map_err(|e| Failure::io("chdir", &e))?;
    let leases = control.lease_file(home);
    stale(home, lease, &config, &leases)?;
    let (guest, ip) = Guest::start(home, control, kind, lease, &vm, &config).await?;
    let started = Instant::now();
    let window = Duration::from_millis(then.sigint_window_ms).saturating_sub(begun.elapsed());
    let (heard, hears) = oneshot::channel();

    if options.vnc_experimental {
        output::line("VNC server is running at vnc://:double-passphrase-one-two@127.0.0.1:59001");
    }
    if control.control_socket {
        let agent = match (then.agent.or(control.agent), kind) {
            (Some(agent), _) => agent,
            (None, Kind::Qemu(_)) => Agent::Guest,
            (None, _) => Agent::None,
        };
        let served = socket::Served::new(agent, kind, ip.clone());
        let after = Duration::from_millis(then.socket_after_ms);
        tokio::task::spawn_local(async move {
            sleep(after).await;
            if window.is_zero() {
                // No rule asked for lost signals, so whoever has seen the socket is heard.
                let _ = hears.await;
            }
            socket::serve(served).await;
        });
    }
    let granted = async {
        if lease.none {
            return std::future::pending().await;
        }
        let entry = lease_entry(lease, &config, &ip);
        sleep(Duration::from_millis(lease.after_ms)).await;
        leases::grant(home, &leases, entry)
    };
    let listen = async {
        listen(&mut unheard, window).await;
        // Nothing else of this thread runs before `hold` has its handler.
        let _ = heard.send(());
    };
    let held = hold(then, options, &vm, &config, guest, started, listen);
    tokio::pin!(granted, held);
    tokio::select! {
        end = &mut held => end,
        result = &mut granted => match result {
            Ok(()) => held.await,
            Err(e) => Err(e),
        },
    }
}

/// Everything under the lock on `TART_HOME`: the check of the MAC, the configuration, the VM's own lock.
async fn begin(
    home: &Home,
    control: &Control,
    then: &Then,
    options: &RunOptions,
    vm: &Vm,
) -> Result<(Config, File), Failure> {
    let global = home.lock()?;
    let mut config = vm.config()?;
    let twin = home.local()?.into_iter().any(|other| {
        other.name != vm.name
            && other.holder().is_some()
            && other.config().is_ok_and(|c| c.mac_address == config.mac_address)
    });
    if twin {
        output::line("There is already a running VM with the same MAC address!");
        output::line("Resetting VM to assign a new MAC address...");
        config.mac_address = config::random_mac();
        config.write(&vm.config_path())?;
    }
    options::check(options, control, &config)?;
    sleep(Duration::from_millis(then.lock_after_ms)).await;
    // From here on nothing in this process may open this file again: closing it would drop the lock.
    let lock = match locks::take(&vm.config_path()) {
        Ok(Some(lock)) => lock,
        Ok(None) => {
            return Err(Failure::Runtime { text: format!("VM \"{}\" is already running!", vm.name), exit: 2 });
        }
        Err(e) => return Err(Failure::io("failed to lock the VM", &e)),
    };
    drop(global);
    Ok((config, lock))
}

fn lease_entry(lease: &Lease, config: &Config, ip: &str) -> leases::Entry {
    let mac = leases::shortened(&config.mac_address);
    leases::Entry {
        name: "double".to_owned(),
        ip: ip.to_owned(),
        hardware: if lease.duid {
            // The MAC is at the end of the identifier, but not where a reader may look for it.
            format!("ff,f1:f5:dd:7f:0:2:0:0:ab:11:{mac}")
        } else {
            format!("1,{mac}")
        },
        expires: leases::now() + lease.seconds,
    }
}

/// What an earlier guest with this MAC has left.
fn stale(home: &Home, lease: &Lease, config: &Config, path: &std::path::Path) -> Result<(), Failure> {
    if lease.stale.is_empty() {
        return Ok(());
    }
    leases::change(home, path, |entries| {
        for old in &lease.stale {
            let entry = leases::Entry {
                name: "double".to_owned(),
                ip: old.ip.clone(),
                hardware: format!("1,{}", leases::shortened(&config.mac_address)),
                expires: leases::now() + old.expires_in_seconds,
            };
            entries.retain(|e| !(e.hardware == entry.hardware && e.ip == entry.ip));
            entries.push(entry);
        }
    })
}

/// Forgets the SIGINTs that nobody heard, those within the window included.
async fn listen(unheard: &mut tokio::signal::unix::Signal, window: Duration) {
    // Signals that came while this thread was busy are handed out when it waits.
    let window = window.max(Duration::from_millis(1));
    let _ = tokio::time::timeout(window, async { while unheard.recv().await.is_some() {} }).await;
}

async fn at(started: Instant, after_ms: Option<u64>) {
    match after_ms {
        Some(ms) => tokio::time::sleep_until((started + Duration::from_millis(ms)).into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for whatever ends the VM.
async fn hold(
    then: &Then,
    options: &RunOptions,
    vm: &Vm,
    config: &Config,
    mut guest: Guest,
    started: Instant,
    listen: impl Future<Output = ()>,
) -> Result<u8, Failure> {
    // Until these are handled, they kill.
    let handler = |kind| signal(kind).map_err(|e| Failure::io("signal", &e));
    let mut suspend = handler(SignalKind::user_defined1())?;
    let mut power_button = handler(SignalKind::user_defined2())?;
    let mut interrupt: Option<tokio::signal::unix::Signal> = None;
    let mut lost = then.lost_sigints;
    let crash_text = then.crash_text.as_deref().unwrap_or(CRASH);
    let crash = at(started, then.crash_after_ms);
    let off = at(started, then.power_off_after_ms);
    let cut = at(started, then.network_lost_after_ms);
    tokio::pin!(listen, crash, off, cut);
    let crashed = |text: &str| output::line(&format!("guest has stopped the virtual machine due to error: {text}"));
    let mut listening = false;
    loop {
        let mut heard = false;
        let interrupted = async {
            match &mut interrupt {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut listen, if !listening => heard = true,
            _ = interrupted => {
                if lost > 0 {
                    lost -= 1;
                    continue;
                }
                output::line("Stopping VM...");
                guest.cut().await;
                sleep(Duration::from_millis(then.stop_takes_ms)).await;
                return Ok(0);
            }
            _ = suspend.recv() => return save(options, vm, config, &mut guest).await,
            _ = power_button.recv() => {
                output::line("Requesting guest OS to stop...");
                guest.press_power_button().await;
            }
            end = guest.ended() => {
                match end {
                    End::PowerOff => output::line("guest has stopped the virtual machine"),
                    End::Crash(why) => crashed(&why),
                }
                return Ok(0);
            }
            () = &mut crash => {
                guest.cut().await;
                crashed(crash_text);
                return Ok(0);
            }
            () = &mut off => {
                guest.cut().await;
                output::line("guest has stopped the virtual machine");
                return Ok(0);
            }
            () = &mut cut => {
                output::line("virtual machine's network attachment VZNATNetworkDeviceAttachment has been disconnected with error: Error Domain=VZErrorDomain Code=1");
                guest.cut().await;
                return Ok(0);
            }
        }
        if heard {
            interrupt = Some(handler(SignalKind::interrupt())?);
            listening = true;
        }
    }
}

/// SIGUSR1: the memory is saved, if the VM was started so that it can be; if not, it is lost.
async fn save(options: &RunOptions, vm: &Vm, config: &Config, guest: &mut Guest) -> Result<u8, Failure> {
    if !(options.suspendable && config.is_darwin()) {
        guest.cut().await;
        output::line(
            "Failed to suspend the VM: Error Domain=VZErrorDomain Code=11 \"Invalid virtual machine configuration.\"",
        );
        return Ok(1);
    }
    output::line("pausing VM to take a snapshot...");
    output::line("creating a snapshot...");
    fs::write(vm.snapshot(), b"double").map_err(|e| Failure::io("failed to suspend", &e))?;
    output::line("snapshot created successfully! shutting down the VM...");
    guest.cut().await;
    Ok(0)
}
