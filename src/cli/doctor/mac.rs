//! Checks a Mac as a host: its hardware, who is logged in, and whether it sleeps. It runs only commands that open no
//! prompt; the keychain check notes the one exception.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::{
    finding::{Check, Finding, strange},
    probe::{FileStatus, HostProbe, Probed, Ran, Unseen, line, refusal},
    setup::DoctorSetup,
};

const CHIP: Check = Check::new("host.chip", "Chip", "an Apple chip of a real Mac");
const SYSTEM: Check = Check::new("host.system", "macOS", "13 or later; 14 or later to reach guests by their agent");
const USER: Check = Check::new("host.user", "User", "the user that is logged in, not root");
const SESSION: Check = Check::new("host.session", "Login session", "this user is logged in on the screen");
const AUTO_LOGIN: Check = Check::new("host.auto_login", "Automatic login", "this user, after every start of the Mac");
const FILEVAULT: Check =
    Check::new("host.filevault", "FileVault", "off; otherwise no user is logged in after a restart");
const KEYCHAIN: Check = Check::new("host.keychain", "Login keychain", "exists, is the default, is unlocked");
const SLEEP: Check = Check::new("host.sleep", "Sleep", "never");
const DISK_SLEEP: Check = Check::new("host.disk_sleep", "Disk sleep", "never");
const RESTART: Check = Check::new("host.auto_restart", "Power failure", "the Mac restarts by itself");
const UPTIME: Check = Check::new("host.uptime", "Uptime", "less than 40 days");
const SCREEN_LOCK: Check = Check::new("host.screen_lock", "Screen lock", "off");
const AGENT: Check = Check::new("service.agent", "launchd agent", "loaded in the login session, and running");

/// After 2^32 ms of uptime, the clock of the kernel's TCP stops: closed connections are never forgotten, so that after a while
/// no new one can be made, and guests and agents hang.
const TCP_CLOCK_STOPS: SignedDuration = SignedDuration::from_millis(1 << 32);
const UPTIME_WARNS: SignedDuration = SignedDuration::from_hours(40 * 24);

/// The label of the agent that deploy/macos installs.
pub const AGENT_LABEL: &str = "dev.mayfly.agent";

const DEFAULTS: &str = "/usr/bin/defaults";
const LAUNCHCTL: &str = "/bin/launchctl";
const SECURITY: &str = "/usr/bin/security";

pub struct MacFacts {
    uid: u32,
    name: Probed<String>,
    hardware: Probed<Ran>,
    /// 1, or an error where there is no such setting.
    arm64: Probed<Ran>,
    version: Probed<String>,
    console: Probed<FileStatus>,
    manager: Probed<String>,
    auto_login: Probed<Ran>,
    /// The obfuscated password that automatic login needs. Never read.
    password: Probed<FileStatus>,
    filevault: Probed<Ran>,
    keychain: Keychain,
    power: Probed<Ran>,
    now: Timestamp,
    booted: Probed<String>,
    screen_lock: Probed<Ran>,
    agent: Probed<Ran>,
    daemon: Probed<Ran>,
}

struct Keychain {
    default: Probed<Ran>,
    login: Probed<Ran>,
    /// What is known of the login keychain, when there is one.
    info: Option<Probed<Ran>>,
}

impl MacFacts {
    /// The major version, where it could be read.
    pub fn macos(&self) -> Option<u32> {
        self.version.as_ref().ok()?.split('.').next()?.parse().ok()
    }
}

pub async fn look(probe: &dyn HostProbe) -> MacFacts {
    let uid = probe.uid();
    let run = async |program: &str, args: &[&str]| probe.run(Path::new(program), args, &[]).await;
    let first = async {
        tokio::join!(
            async { line(&run("/usr/bin/id", &["-un"]).await) },
            run("/usr/sbin/sysctl", &["hw.model", "machdep.cpu.brand_string", "hw.memsize"]),
            // In a separate call, because an unknown name makes the command fail.
            run("/usr/sbin/sysctl", &["-n", "hw.optional.arm64"]),
            async { line(&run("/usr/bin/sw_vers", &["-productVersion"]).await) },
            probe.entry(Path::new("/dev/console")),
            async { line(&run(LAUNCHCTL, &["managername"]).await) },
            run(DEFAULTS, &["read", "/Library/Preferences/com.apple.loginwindow", "autoLoginUser"]),
            probe.entry(Path::new("/etc/kcpassword")),
        )
    };
    let agent = format!("gui/{uid}/{AGENT_LABEL}");
    let daemon = format!("system/{AGENT_LABEL}");
    let (print_agent, print_daemon) = (["print", &agent], ["print", &daemon]);
    let second = async {
        tokio::join!(
            run("/usr/bin/fdesetup", &["status"]),
            keychain(probe),
            run("/usr/bin/pmset", &["-g"]),
            async { line(&run("/usr/sbin/sysctl", &["-n", "kern.boottime"]).await) },
            run("/usr/sbin/sysadminctl", &["-screenLock", "status"]),
            run(LAUNCHCTL, &print_agent),
            run(LAUNCHCTL, &print_daemon),
        )
    };
    let (
        (name, hardware, arm64, version, console, manager, auto_login, password),
        (filevault, keychain, power, booted, screen_lock, agent, daemon),
    ) = tokio::join!(first, second);
    MacFacts {
        uid,
        name,
        hardware,
        arm64,
        version,
        console,
        manager,
        auto_login,
        password,
        filevault,
        keychain,
        power,
        now: probe.now(),
        booted,
        screen_lock,
        agent,
        daemon,
    }
}

/// Looking at a locked keychain from a login session makes macOS show its password dialog, until the look's time is over.
/// Nothing that comes with macOS tells the same without. An unlocked one is looked at in silence.
async fn keychain(probe: &dyn HostProbe) -> Keychain {
    let security = async |args: &[&str]| probe.run(Path::new(SECURITY), args, &[]).await;
    let (default, login) =
        tokio::join!(security(&["default-keychain", "-d", "user"]), security(&["login-keychain", "-d", "user"]));
    let info = match &login {
        Ok(ran) if ran.succeeded() => match keychain_path(&ran.stdout) {
            Some(path) => Some(security(&["show-keychain-info", &path.display().to_string()]).await),
            None => None,
        },
        _ => None,
    };
    Keychain { default, login, info }
}

/// `    "/Users/ci/Library/Keychains/login.keychain-db"`
fn keychain_path(text: &str) -> Option<PathBuf> {
    let path = text.trim().strip_prefix('"')?.strip_suffix('"')?;
    (path.starts_with('/') && !path.contains('\n')).then(|| path.into())
}

pub fn judge(facts: &MacFacts, setup: &DoctorSetup) -> Vec<Finding> {
    let macos = facts.macos();
    let mut findings = vec![
        chip(facts, setup),
        system(facts, setup, macos),
        user(facts),
        session(facts),
        auto_login(facts),
        filevault(facts),
    ];
    findings.push(keychain_is_usable(facts, macos));
    findings.extend(power(facts));
    findings.push(uptime(facts));
    findings.push(screen_lock(facts));
    findings
}

fn chip(facts: &MacFacts, setup: &DoctorSetup) -> Finding {
    let hardware = match &facts.hardware {
        Ok(ran) => &ran.stdout,
        Err(why) => return CHIP.could_not_look(format!("sysctl: {why}")),
    };
    let value = |name: &str| {
        hardware
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
    };
    let (Some(model), Some(brand)) = (value("hw.model"), value("machdep.cpu.brand_string")) else {
        return CHIP.could_not_look(strange("hw.model and machdep.cpu.brand_string from sysctl", hardware));
    };
    let found = format!("{brand} ({model})");
    let apple = match &facts.arm64 {
        Ok(ran) if ran.succeeded() => ran.stdout.trim() == "1",
        // An Intel Mac does not know the setting.
        Ok(_) => false,
        Err(why) => return CHIP.could_not_look(format!("sysctl: {why}")),
    };
    if !apple {
        return CHIP.fail(found, "macOS guests need a Mac with an Apple chip");
    }
    if model.starts_with("VirtualMac") || brand.contains("Virtual") {
        return CHIP.fail(
            format!("{found}: this Mac is itself a guest"),
            "macOS guests do not run in a guest: install Mayfly on the Mac itself",
        );
    }
    let nested = setup.config.drivers.tart.nested;
    match generation(&brand) {
        Some(n) if n < 3 && nested => CHIP.fail(
            format!("{found} has no nested virtualisation, but the configuration requires it"),
            "it needs an M3 or later; without one:\n    drivers.tart.nested = false",
        ),
        Some(n) if n < 3 => CHIP.ok(format!("{found}; nested virtualisation needs M3")),
        Some(_) => CHIP.ok(format!("{found}; Linux guests may nest")),
        None => CHIP.ok(found),
    }
}

/// 4 of `Apple M4 Pro`.
fn generation(brand: &str) -> Option<u32> {
    let rest = brand.strip_prefix("Apple M")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn system(facts: &MacFacts, setup: &DoctorSetup, macos: Option<u32>) -> Finding {
    let version = match &facts.version {
        Ok(version) => version,
        Err(why) => return SYSTEM.could_not_look(format!("sw_vers: {why}")),
    };
    const UPDATE: &str = "update macOS";
    match macos {
        None => SYSTEM.could_not_look(strange("a version such as 26.1 from sw_vers", version)),
        Some(..13) => SYSTEM.fail(format!("{version}; Tart needs 13"), UPDATE),
        Some(..26) if setup.templates.iter().any(|t| t.driver == "tart" && t.disk_format == "asif") => SYSTEM.fail(
            format!("{version}; a template has an ASIF disk, which needs 26"),
            "update macOS, or convert the disk to raw",
        ),
        Some(13) => SYSTEM.warn(format!("{version}: guests can be reached over SSH only"), UPDATE),
        Some(14..26) => SYSTEM.ok(format!("{version}; templates with ASIF disks need 26")),
        Some(_) => SYSTEM.ok(version.clone()),
    }
}

fn user(facts: &MacFacts) -> Finding {
    let name = match &facts.name {
        Ok(name) => name.as_str(),
        Err(why) => return USER.could_not_look(format!("id: {why}")),
    };
    if facts.uid == 0 {
        return USER.fail(
            "root, which has no login keychain: macOS guests do not start",
            "run the service as a LaunchAgent of the user who is logged in, and run `mayfly doctor` as that user",
        );
    }
    if name.is_empty() || name.contains(char::is_whitespace) {
        return USER.could_not_look(strange("a user's name from id", name));
    }
    USER.ok(format!("{name} ({})", facts.uid))
}

/// The user who is logged in on the screen owns the console.
fn session(facts: &MacFacts) -> Finding {
    const REMEDY: &str =
        "log in on the screen (or by Screen Sharing) as the user of the service, and switch on automatic login";
    match &facts.console {
        Err(why) => SESSION.could_not_look(format!("/dev/console: {why}")),
        Ok(console) if console.uid == facts.uid => {
            let here = match facts.manager.as_deref() {
                Ok("Aqua") => "on the screen; `mayfly doctor` runs in that session",
                Ok(_) => "on the screen; `mayfly doctor` runs outside that session",
                Err(_) => "on the screen",
            };
            SESSION.ok(here)
        }
        Ok(console) if console.uid == 0 => SESSION.fail("no user is logged in on the screen", REMEDY),
        Ok(console) => SESSION.fail(format!("user {} is, not user {}", console.uid, facts.uid), REMEDY),
    }
}

/// `defaults` ends with 1 for a setting that is not there, and says so.
fn is_not_set(ran: &Ran) -> bool {
    ran.code == Some(1) && ran.stderr.contains("does not exist")
}

fn auto_login(facts: &MacFacts) -> Finding {
    const REMEDY: &str = "System Settings, Users & Groups: log in automatically as this user (FileVault must be off). \
         Without it, nothing runs after a restart until a user logs in";
    let ran = match &facts.auto_login {
        Ok(ran) => ran,
        Err(why) => return AUTO_LOGIN.could_not_look(format!("defaults: {why}")),
    };
    if is_not_set(ran) {
        return AUTO_LOGIN.warn("off", REMEDY);
    }
    let user = ran.stdout.trim();
    if !ran.succeeded() || user.is_empty() || user.contains('\n') {
        return AUTO_LOGIN.could_not_look(strange("the name of a user from defaults", ran.words()));
    }
    match &facts.name {
        Ok(name) if name != user => AUTO_LOGIN.warn(format!("as {user}, but `mayfly doctor` runs as {name}"), REMEDY),
        _ if facts.password == Err(Unseen::Absent) => {
            AUTO_LOGIN.warn(format!("as {user}, but without a stored password (/etc/kcpassword)"), REMEDY)
        }
        _ => AUTO_LOGIN.ok(format!("as {user}")),
    }
}

fn filevault(facts: &MacFacts) -> Finding {
    let ran = match &facts.filevault {
        Ok(ran) => ran,
        Err(why) => return FILEVAULT.could_not_look(format!("fdesetup: {why}")),
    };
    // More lines follow while it is being turned on or off.
    match ran.stdout.lines().next().map(str::trim) {
        Some("FileVault is Off.") => FILEVAULT.ok("off"),
        Some("FileVault is On.") => FILEVAULT.warn(
            "on: a restart stops at a password prompt on the screen",
            "turn it off, or enter the password after every restart:\n    sudo fdesetup disable",
        ),
        _ => FILEVAULT.could_not_look(strange("\"FileVault is Off.\" or \"FileVault is On.\"", ran.words())),
    }
}

fn keychain_is_usable(facts: &MacFacts, macos: Option<u32>) -> Finding {
    const MAKE: &str = "create one with the login password, and make it the default:\n    \
         security create-keychain login.keychain\n    \
         security default-keychain -s login.keychain\n    \
         security login-keychain -s login.keychain";
    const UNLOCK: &str = "unlock it and keep it unlocked; log in automatically, so that it is unlocked after a restart:\n    \
         security unlock-keychain login.keychain\n    \
         security set-keychain-settings login.keychain";
    // Guests from macOS 15.2 on store a key there, on hosts from 15 on.
    let say = |found: String, remedy: &str| {
        if macos.is_some_and(|n| n < 15) {
            KEYCHAIN.warn(format!("{found}; from macOS 15 on, no guest starts then"), remedy)
        } else {
            KEYCHAIN.fail(found, remedy)
        }
    };
    let path = |which: &Probed<Ran>| match which {
        Ok(ran) if ran.succeeded() => {
            keychain_path(&ran.stdout).map(Some).ok_or_else(|| strange("the path of a keychain", ran.words()))
        }
        Ok(ran) if ran.stderr.contains("could not be found") => Ok(None),
        Ok(ran) => Err(format!("security: {}", refusal(ran))),
        Err(why) => Err(format!("security: {why}")),
    };
    let (login, default) = match (path(&facts.keychain.login), path(&facts.keychain.default)) {
        (Ok(login), Ok(default)) => (login, default),
        (Err(why), _) | (_, Err(why)) => return KEYCHAIN.could_not_look(why),
    };
    let Some(login) = login else { return say("there is none".to_owned(), MAKE) };
    if default.as_ref() != Some(&login) {
        let instead = default.map_or_else(|| "none is".to_owned(), |path| format!("{} is", path.display()));
        return say(
            format!("it is not the default keychain: {instead}"),
            "make it the default:\n    security default-keychain -d user -s login.keychain",
        );
    }
    let in_session = facts.manager.as_deref() == Ok("Aqua");
    match &facts.keychain.info {
        Some(Ok(ran)) if ran.succeeded() => {
            // On standard error: `Keychain "…" no-timeout`, or with `lock-on-sleep` and `timeout=300s`.
            let said = ran.words();
            if !said.starts_with("Keychain \"") {
                return KEYCHAIN.could_not_look(strange("Keychain \"…\" and its settings", said));
            }
            match said.split_ascii_whitespace().find_map(|word| word.strip_prefix("timeout=")) {
                Some(after) => KEYCHAIN.warn(
                    format!("unlocked, and locks itself after {after}"),
                    "keep it unlocked for as long as its user is logged in:\n    security set-keychain-settings login.keychain",
                ),
                None => KEYCHAIN.ok("the default, and unlocked"),
            }
        }
        Some(Ok(ran)) if ran.stderr.contains("User interaction is not allowed") && in_session => {
            say("locked".to_owned(), UNLOCK)
        }
        // Each session has its own lock: an SSH session may see another state than the agent.
        Some(Ok(ran)) if ran.stderr.contains("User interaction is not allowed") => KEYCHAIN.warn(
            "locked in this session, which is not the one on the screen",
            "run `mayfly doctor` in Terminal on the screen. If it is locked there, too:\n    \
             security unlock-keychain login.keychain",
        ),
        Some(Ok(ran)) if ran.stderr.contains("could not be found") => {
            say(format!("{} does not exist", login.display()), MAKE)
        }
        Some(Ok(ran)) => KEYCHAIN.could_not_look(format!("security: {}", refusal(ran))),
        Some(Err(Unseen::TimedOut(_))) if in_session => say("locked: macOS asked for its password".to_owned(), UNLOCK),
        Some(Err(why)) => KEYCHAIN.could_not_look(format!("security: {why}")),
        None => KEYCHAIN.could_not_look("security did not report its path"),
    }
}

/// A setting of `pmset -g`: ` sleep   1 (sleep prevented by powerd)`.
fn power_setting(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

fn power(facts: &MacFacts) -> Vec<Finding> {
    let all = |finding: &dyn Fn(Check) -> Finding| [SLEEP, DISK_SLEEP, RESTART].map(finding).to_vec();
    let text = match &facts.power {
        Ok(ran) if ran.succeeded() => &ran.stdout,
        Ok(ran) => return all(&|check| check.could_not_look(format!("pmset: {}", refusal(ran)))),
        Err(why) => return all(&|check| check.could_not_look(format!("pmset: {why}"))),
    };
    let unknown = |check: Check, name: &str| check.could_not_look(strange(&format!("{name} in pmset -g"), text));
    let sleep = match (power_setting(text, "SleepDisabled"), power_setting(text, "sleep")) {
        (Some(1), _) => SLEEP.ok("never (SleepDisabled)"),
        (_, Some(0)) => SLEEP.ok("never"),
        (_, Some(minutes)) => SLEEP.fail(
            format!("after {minutes} min without input: guests stop, jobs are lost"),
            "prevent it from sleeping:\n    sudo pmset -a sleep 0 disksleep 0 displaysleep 0",
        ),
        (_, None) => unknown(SLEEP, "sleep"),
    };
    let disk = match power_setting(text, "disksleep") {
        Some(0) => DISK_SLEEP.ok("never"),
        Some(minutes) => DISK_SLEEP.warn(
            format!("after {minutes} min"),
            "otherwise guests wait for the disk to wake up:\n    sudo pmset -a disksleep 0",
        ),
        None => unknown(DISK_SLEEP, "disksleep"),
    };
    let restart = match power_setting(text, "autorestart") {
        Some(1) => RESTART.ok("restarts by itself"),
        Some(_) => RESTART.warn(
            "the Mac stays off until it is switched on by hand",
            "let it restart by itself:\n    sudo pmset -a autorestart 1",
        ),
        // Macs with a battery have no such setting.
        None => RESTART.not_needed("this Mac has no such setting"),
    };
    vec![sleep, disk, restart]
}

fn uptime(facts: &MacFacts) -> Finding {
    let text = match &facts.booted {
        Ok(text) => text,
        Err(why) => return UPTIME.could_not_look(format!("sysctl: {why}")),
    };
    // { sec = 1763100000, usec = 123 } Fri Nov 14 06:00:00 2026
    let seconds = text.split_once("sec = ").and_then(|(_, rest)| rest.split(',').next()?.trim().parse().ok());
    let Some(booted) = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()) else {
        return UPTIME.could_not_look(strange("kern.boottime from sysctl", text));
    };
    let up = facts.now.duration_since(booted);
    let found = format!("up for {} days", up.as_hours() / 24);
    let remedy = "restart the Mac when no job runs:\n    sudo shutdown -r now";
    if up >= TCP_CLOCK_STOPS {
        UPTIME.fail(
            format!("{found}: the clock of the kernel's TCP stopped after 49.7 days, and connections hang"),
            remedy,
        )
    } else if up >= UPTIME_WARNS {
        UPTIME
            .warn(format!("{found}: after 49.7 days the clock of the kernel's TCP stops, and connections hang"), remedy)
    } else {
        UPTIME.ok(found)
    }
}

fn screen_lock(facts: &MacFacts) -> Finding {
    let ran = match &facts.screen_lock {
        Ok(ran) => ran,
        Err(why) => return SCREEN_LOCK.could_not_look(format!("sysadminctl: {why}")),
    };
    // Written as a log line, on standard error.
    let said = ran.words();
    if said.contains("screenLock is off") {
        SCREEN_LOCK.ok("off")
    } else if let Some((_, delay)) = said.split_once("screenLock delay is ") {
        SCREEN_LOCK.warn(
            format!("on, delay: {}", delay.lines().next().unwrap_or_default().trim()),
            "the lock hides questions that macOS asks on the screen, also over Screen Sharing; turn it off (asks for the \
             password):\n    sysadminctl -screenLock off -password -",
        )
    } else {
        SCREEN_LOCK.could_not_look(strange("\"screenLock is off\" or \"screenLock delay is …\"", said))
    }
}

/// `runs`: whether the service answers.
pub fn agent(facts: &MacFacts, runs: bool) -> Finding {
    const INSTALL: &str = "install it, as the user who is logged in:\n    deploy/macos/install.sh";
    if facts.daemon.as_ref().is_ok_and(Ran::succeeded) {
        return AGENT.fail(
            "loaded as a daemon, outside of the login session",
            format!("in that domain the login keychain is locked, and macOS guests do not start; remove it:\n    sudo launchctl bootout system/{AGENT_LABEL}\nthen {INSTALL}"),
        );
    }
    let ran = match &facts.agent {
        Ok(ran) => ran,
        Err(why) => return AGENT.could_not_look(format!("launchctl: {why}")),
    };
    if !ran.succeeded() {
        return if runs {
            AGENT.warn("not loaded: the service was started by hand, and does not start after a restart", INSTALL)
        } else {
            AGENT.warn("not loaded", INSTALL)
        };
    }
    // The first match is the agent's own state; those of its endpoints follow, indented.
    let field = |name: &str| {
        ran.stdout
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('='))
            .map(str::trim)
    };
    match field("state") {
        Some("running") => AGENT.ok("running"),
        Some(state) => {
            let code = field("last exit code").map_or_else(String::new, |code| format!(", last exit code {code}"));
            AGENT.fail(
                format!("loaded and {state}{code}"),
                format!("see its log in ~/Library/Logs/mayfly, then restart it:\n    launchctl kickstart -k gui/{}/{AGENT_LABEL}", facts.uid),
            )
        }
        None => AGENT.could_not_look(strange("its state from launchctl print", &ran.stdout)),
    }
}

/// For the settings of this system: what a plain `defaults read` says, or `None` where nothing is set.
pub async fn default_setting(probe: &dyn HostProbe, domain: &str, key: &str) -> Probed<Option<String>> {
    match probe.run(Path::new(DEFAULTS), &["read", domain, key], &[]).await {
        Ok(ran) if ran.succeeded() => Ok(Some(ran.stdout)),
        Ok(ran) if is_not_set(&ran) => Ok(None),
        Ok(ran) => Err(Unseen::Other(format!("defaults: {}", refusal(&ran)))),
        Err(why) => Err(why),
    }
}
