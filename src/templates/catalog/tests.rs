use std::{
    collections::BTreeSet,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    process::Command,
    slice,
    time::{Duration, SystemTime},
};

use russh::keys::{Algorithm, PrivateKey, key::safe_rng, ssh_key::LineEnding};

use super::*;
use crate::{
    domain::{
        Arch, Budgets, GuestOs, Handover,
        template::DiskFormat,
        version::{Held, HeldKind, PruneRequest},
    },
    templates::{manifest::Piece, oci},
};

/// What vms need, and what they were told.
#[derive(Debug, Default)]
pub(super) struct Vms {
    /// In the list that is asked for first.
    listed: Mutex<BTreeSet<String>>,
    /// When it is asked for one.
    needed: Mutex<BTreeSet<String>>,
    told: Mutex<Vec<String>>,
}

impl Vms {
    pub fn of(digests: &[&str]) -> Arc<Vms> {
        let digests: BTreeSet<String> = digests.iter().map(|d| (*d).to_owned()).collect();
        Arc::new(Vms { listed: Mutex::new(digests.clone()), needed: Mutex::new(digests), told: Mutex::default() })
    }

    fn none(&self) {
        self.listed.lock().unwrap().clear();
        self.needed.lock().unwrap().clear();
    }
}

#[async_trait::async_trait]
impl Surroundings for Vms {
    async fn needed(&self) -> Result<BTreeSet<String>> {
        Ok(self.listed.lock().unwrap().clone())
    }

    async fn needs(&self, digest: &str) -> Result<bool> {
        Ok(self.needed.lock().unwrap().contains(digest))
    }

    async fn pruned(&self, held: &Held) {
        self.told.lock().unwrap().push(held.digest.clone());
    }
}

/// The digests of what can be pruned, which then is.
async fn removed(catalog: &Catalog) -> Vec<String> {
    let pruned = catalog.prune(&PruneRequest::default()).await.unwrap();
    pruned.removed.into_iter().map(|held| held.digest).collect()
}

/// A catalog in a directory beside the files that templates are made of.
struct Fixture {
    dir: tempfile::TempDir,
    catalog: Catalog,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path().join("templates")).unwrap();
        fs::write(dir.path().join("disk.raw"), vec![7; 4096]).unwrap();
        fs::write(dir.path().join("kernel"), "a kernel").unwrap();
        Fixture { dir, catalog }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn key(&self, name: &str, mode: u32) -> PathBuf {
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        fs::write(self.at(name), key.to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).unwrap();
        self.at(name)
    }

    fn template(&self, name: &str) -> NewTemplate {
        NewTemplate {
            os: Some(GuestOs::Linux),
            arch: Some(Arch::X86_64),
            cpus: Some(1),
            memory_mib: Some(192),
            ..NewTemplate::of_disk(name, self.at("disk.raw"))
        }
    }

    /// Everything in the catalog's directory, for "nothing is left".
    fn entries(&self) -> Vec<String> {
        let mut entries = Vec::new();
        for dir in ["", "names", "staging"] {
            for entry in fs::read_dir(self.at("templates").join(dir)).unwrap() {
                entries.push(format!("{dir}/{}", entry.unwrap().file_name().to_str().unwrap()));
            }
        }
        entries.sort();
        entries
    }

    async fn refused(&self, new: NewTemplate) -> Vec<(String, String)> {
        let error = self.catalog.register(new).await.unwrap_err();
        assert_eq!(error.code, Code::TemplateInvalid, "{error}");
        error.fields.into_iter().map(|f| (f.pointer, f.detail)).collect()
    }

    async fn refused_for(&self, new: NewTemplate) -> String {
        let fields = self.refused(new).await;
        assert_eq!(fields.len(), 1, "{fields:?}");
        fields.into_iter().map(|(pointer, _)| pointer).collect()
    }
}

const EMPTY: [&str; 3] = ["/.lock", "/names", "/staging"];

#[tokio::test]
async fn a_template_is_imported_whole_and_found_again() {
    let f = Fixture::new();
    let key = f.key("key", 0o600);
    let new = NewTemplate {
        kernel: Some(f.at("kernel")),
        initramfs: Some(f.at("kernel")),
        firmware: Some(f.at("kernel")),
        ssh_key: Some(key.clone()),
        cmdline: Some("console=ttyS0".into()),
        handover: Some(Handover::Ssh),
        ..f.template("micro")
    };
    let made = f.catalog.register(new).await.unwrap();
    assert_eq!((made.name.as_str(), made.disk_format, made.disk_virtual_bytes), ("micro", DiskFormat::Raw, 4096));
    assert!(made.size_bytes >= 4096);
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
    let files = &made.files;
    assert_eq!(mode(&files.disk), 0o444);
    assert_eq!(mode(files.ssh_key.as_ref().unwrap()), 0o600);
    assert_eq!(fs::read(files.ssh_key.as_ref().unwrap()).unwrap(), fs::read(&key).unwrap());
    for file in [&files.kernel, &files.initramfs, &files.firmware] {
        assert_eq!(fs::read(file.as_ref().unwrap()).unwrap(), b"a kernel");
    }
    let dir = f.at("templates").join(made.digest.replace(':', "-"));
    assert_eq!((files.disk.parent(), mode(&dir)), (Some(dir.as_path()), 0o700));

    // The sources may go; another catalog on the same directory sees the same.
    fs::remove_file(f.at("disk.raw")).unwrap();
    let again = Catalog::open(f.at("templates")).unwrap();
    for wanted in ["micro", made.digest.as_str()] {
        assert_eq!(again.get(wanted).await.unwrap(), made);
    }
    assert_eq!(again.list().await.unwrap(), [made]);
    for missing in ["other", "../names/micro", "", "sha256:00", &format!("sha256:{}", "0".repeat(64))] {
        assert_eq!(again.get(missing).await.unwrap_err().code, Code::TemplateNotFound, "{missing}");
        assert_eq!(again.remove(missing).await.unwrap_err().code, Code::TemplateNotFound, "{missing}");
    }
}

#[tokio::test]
async fn the_same_again_is_the_same_and_a_taken_name_is_refused() {
    let f = Fixture::new();
    let first = f.catalog.register(f.template("a")).await.unwrap();
    assert_eq!(f.catalog.register(f.template("a")).await.unwrap(), first);
    let twin = f.catalog.register(f.template("b")).await.unwrap();
    assert_eq!((twin.digest == first.digest, twin.name.as_str()), (true, "b"));
    assert_eq!(f.catalog.get(&first.digest).await.unwrap().name, "a");

    for other in [
        NewTemplate { cpus: Some(2), ..f.template("a") },
        NewTemplate { disk: f.at("kernel512"), ..f.template("a") },
        NewTemplate { budgets: Budgets { idle_seconds: 1, ..Budgets::default() }, ..f.template("a") },
    ] {
        fs::write(f.at("kernel512"), [1; 512]).unwrap();
        assert_eq!(f.catalog.register(other).await.unwrap_err().code, Code::TemplateExists);
    }
    assert_eq!(f.catalog.get("a").await.unwrap(), first);
    assert_eq!(f.entries().len(), EMPTY.len() + 3);
}

#[tokio::test]
async fn every_fault_is_named_at_once_and_nothing_is_left() {
    let f = Fixture::new();
    let new = NewTemplate {
        name: Some("-x".into()),
        driver: Some(String::new()),
        disk: "disk.raw".into(),
        kernel: Some(f.at("missing")),
        firmware: Some(f.dir.path().into()),
        ssh_key: Some(f.key("open", 0o644)),
        cpus: Some(0),
        memory_mib: Some(0),
        user: Some("a b".into()),
        os: Some(GuestOs::Macos),
        handover: Some(Handover::Seed),
        cmdline: Some("a\nb".into()),
        ..f.template("x")
    };
    let mut fields: Vec<String> = f.refused(new).await.into_iter().map(|(pointer, _)| pointer).collect();
    fields.sort();
    assert_eq!(
        fields,
        [
            "/cmdline",
            "/cpus",
            "/disk",
            "/driver",
            "/firmware",
            "/handover",
            "/kernel",
            "/memory_mib",
            "/name",
            "/ssh_key",
            "/user"
        ]
    );
    assert_eq!(f.entries(), EMPTY);
}

#[tokio::test]
async fn each_file_must_be_what_it_is_said_to_be() {
    let f = Fixture::new();
    let with_disk = |disk: &str, format| NewTemplate { disk: f.at(disk), disk_format: format, ..f.template("x") };
    let qemu_img = |args: &[&str]| {
        assert!(Command::new("qemu-img").args(args).current_dir(f.dir.path()).status().unwrap().success());
    };
    qemu_img(&["convert", "-O", "qcow2", "disk.raw", "good.qcow2"]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "overlay.qcow2"]);
    fs::copy(f.at("good.qcow2"), f.at("misnamed.img")).unwrap();
    fs::copy(f.at("disk.raw"), f.at("raw.qcow2")).unwrap();
    fs::write(f.at("odd"), [0; 513]).unwrap();
    fs::write(f.at("empty"), "").unwrap();
    assert!(Command::new("mkfifo").arg(f.at("pipe")).status().unwrap().success());

    use DiskFormat::{Qcow2, Raw};
    for (disk, format, field) in [
        ("overlay.qcow2", None, "/disk"),
        ("overlay.qcow2", Some(Qcow2), "/disk"),
        ("good.qcow2", Some(Raw), "/disk"),
        ("disk.raw", Some(Qcow2), "/disk"),
        ("misnamed.img", None, "/disk_format"),
        ("raw.qcow2", None, "/disk_format"),
        ("odd", None, "/disk"),
        ("empty", None, "/disk"),
        ("pipe", None, "/disk"),
    ] {
        assert_eq!(f.refused_for(with_disk(disk, format)).await, field, "{disk} {format:?}");
    }
    let part = |kernel, initramfs, ssh_key| NewTemplate { kernel, initramfs, ssh_key, ..f.template("x") };
    assert_eq!(f.refused_for(part(Some(f.at("empty")), None, None)).await, "/kernel");
    assert_eq!(f.refused_for(part(None, Some(f.at("kernel")), None)).await, "/initramfs");
    let no_key = f.at("kernel");
    fs::set_permissions(&no_key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(f.refused_for(part(None, None, Some(no_key))).await, "/ssh_key");
    let key = f.key("locked", 0o600);
    let keygen = Command::new("ssh-keygen").args(["-q", "-p", "-N", "secret", "-f"]).arg(&key).output().unwrap();
    assert!(keygen.status.success());
    let fields = f.refused(part(None, None, Some(key))).await;
    assert!(fields[0].1.contains("passphrase"), "{fields:?}");
    assert_eq!(f.entries(), EMPTY);

    for (disk, format, size) in
        [("good.qcow2", None, 4096), ("misnamed.img", Some(Qcow2), 4096), ("raw.qcow2", Some(Raw), 4096)]
    {
        let name = disk.replace(".qcow2", "");
        let made = f.catalog.register(NewTemplate { name: Some(name), ..with_disk(disk, format) }).await.unwrap();
        assert_eq!(made.disk_virtual_bytes, size);
    }
}

#[test]
fn names_are_plain() {
    for good in ["a", "0", "macos-tahoe-latest", "a.b_c-d", &"x".repeat(63)] {
        assert!(check::is_name(good), "{good}");
    }
    for bad in
        ["", ".", "..", ".a", "-a", "_a", "A", "a/b", "a:b", "a b", "ä", "a\n", "prune", "import", &"x".repeat(64)]
    {
        assert!(!check::is_name(bad), "{bad:?}");
    }
}

#[tokio::test]
async fn two_at_once_give_one_template_or_one_refusal() {
    for _ in 0..8 {
        let f = Fixture::new();
        let (a, b) = tokio::join!(f.catalog.register(f.template("a")), f.catalog.register(f.template("a")));
        assert_eq!(a.unwrap(), b.unwrap());
        assert_eq!(f.entries().len(), EMPTY.len() + 2);

        let other = Catalog::open(f.at("templates")).unwrap();
        let one = NewTemplate { cpus: Some(3), ..f.template("b") };
        let two = NewTemplate { cpus: Some(4), ..f.template("b") };
        let (a, b) = tokio::join!(f.catalog.register(one), other.register(two));
        let (won, lost) = if a.is_ok() { (a, b) } else { (b, a) };
        assert_eq!(lost.unwrap_err().code, Code::TemplateExists);
        assert_eq!(f.catalog.get("b").await.unwrap(), won.unwrap());
        assert_eq!(f.entries().len(), EMPTY.len() + 4);
    }
}

#[tokio::test]
async fn removing_waits_for_clones_and_takes_the_files_with_the_last_name() {
    let f = Fixture::new();
    let a = f.catalog.register(f.template("a")).await.unwrap();
    f.catalog.register(f.template("b")).await.unwrap();
    f.catalog.remove("b").await.unwrap();
    assert_eq!(f.catalog.get("b").await.unwrap_err().code, Code::TemplateNotFound);

    let clone = File::open(&a.files.disk).unwrap();
    clone.lock_shared().unwrap();
    let error = f.catalog.remove("a").await.unwrap_err();
    assert_eq!((error.code, error.retry_after), (Code::TemplateInUse, Some(5)));
    assert_eq!(f.catalog.get("a").await.unwrap(), a);
    drop(clone);
    f.catalog.remove("a").await.unwrap();
    assert_eq!(f.entries(), EMPTY);
    assert_eq!(f.catalog.remove("a").await.unwrap_err().code, Code::TemplateNotFound);
}

#[tokio::test]
async fn what_a_crash_leaves_is_never_seen_and_swept() {
    let f = Fixture::new();
    let made = f.catalog.register(f.template("a")).await.unwrap();
    let staging = f.at("templates/staging");
    for name in ["half-an-import", "half-a-removal"] {
        fs::create_dir(staging.join(name)).unwrap();
        fs::write(staging.join(name).join("disk"), "half").unwrap();
    }
    fs::write(staging.join("half-a-name"), "sha256:").unwrap();
    fs::create_dir(staging.join("at-work")).unwrap();
    let at_work = File::open(staging.join("at-work")).unwrap();
    at_work.lock().unwrap();
    assert_eq!(f.catalog.list().await.unwrap(), slice::from_ref(&made));

    let again = Catalog::open(f.at("templates")).unwrap();
    let left: Vec<_> = fs::read_dir(&staging).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["at-work"]);

    // Published and not yet named, or no longer named: no vm can have asked for it.
    fs::remove_file(f.at("templates/names/a")).unwrap();
    assert_eq!(again.list().await.unwrap(), []);
    assert_eq!(again.get(&made.digest).await.unwrap().name, made.digest);
    let vms = Vms::of(&[&made.digest]);
    again.settle(vms.clone());
    assert_eq!(removed(&again).await, [""; 0]);
    vms.none();
    let clone = File::open(&made.files.disk).unwrap();
    clone.lock_shared().unwrap();
    assert_eq!(removed(&again).await, [""; 0]);
    drop(clone);
    assert_eq!(removed(&again).await, slice::from_ref(&made.digest));
    assert_eq!(again.get(&made.digest).await.unwrap_err().code, Code::TemplateNotFound);
    assert_eq!(again.register(f.template("a")).await.unwrap().digest, made.digest);
}

#[tokio::test]
async fn damage_is_noticed_does_not_hide_others_and_is_mended_by_registering_again() {
    let f = Fixture::new();
    let made = f.catalog.register(f.template("a")).await.unwrap();
    let good = f.catalog.register(NewTemplate { cpus: Some(2), ..f.template("b") }).await.unwrap();
    let manifest = made.files.disk.with_file_name("manifest.json");
    let original = fs::read_to_string(&manifest).unwrap();

    let write = |path: &Path, text: &str| {
        fs::remove_file(path).unwrap();
        fs::write(path, text).unwrap();
    };
    for damage in 0..4 {
        match damage {
            0 => write(&manifest, &original.replace("192", "999")),
            1 => write(&manifest, "{"),
            2 => write(&made.files.disk, "short"),
            _ => fs::remove_file(&made.files.disk).unwrap(),
        }
        let error = f.catalog.get("a").await.unwrap_err();
        assert_eq!(error.code, Code::TemplateInvalid);
        assert_eq!(f.catalog.list().await.unwrap(), slice::from_ref(&good));
        let mended = f.catalog.register(f.template("a")).await.unwrap();
        assert_eq!(mended.digest, made.digest);
        assert_eq!(fs::read(&mended.files.disk).unwrap(), vec![7; 4096]);
    }
    // A name that points at nothing, or at nonsense, can be taken and can be removed.
    fs::write(f.at("templates/names/lost"), format!("sha256:{}\n", "0".repeat(64))).unwrap();
    fs::write(f.at("templates/names/odd"), "../..").unwrap();
    assert_eq!(f.catalog.list().await.unwrap().len(), 2);
    assert!(f.catalog.get("odd").await.is_err());
    f.catalog.remove("odd").await.unwrap();
    f.catalog.register(f.template("lost")).await.unwrap();
    assert_eq!(f.catalog.list().await.unwrap().len(), 3);
}

const TART_CONFIG: &str = r#"{"version":1,"os":"linux","arch":"arm64","cpuCountMin":2,"cpuCount":4,"memorySizeMin":1073741824,
 "memorySize":4294967296,"macAddress":"7a:65:e4:3f:b2:51","display":{"width":1024,"height":768}}"#;

fn of_tart(f: &Fixture, name: &str, config: &str) -> NewTemplate {
    fs::write(f.at("config.json"), config).unwrap();
    fs::write(f.at("nvram.bin"), "nvram").unwrap();
    NewTemplate {
        config: Some(f.at("config.json")),
        nvram: Some(f.at("nvram.bin")),
        ..NewTemplate::of_disk(name, f.at("disk.raw"))
    }
}

#[tokio::test]
async fn a_vm_of_tart_says_itself_what_it_is() {
    let f = Fixture::new();
    let password = f.at("password");
    fs::write(&password, "admin\n").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let new = NewTemplate { ssh_password: Some(password), ..of_tart(&f, "tart", TART_CONFIG) };
    let made = f.catalog.register(new).await.unwrap();
    assert_eq!((made.driver.as_str(), made.os, made.arch), ("tart", GuestOs::Linux, Arch::Aarch64));
    assert_eq!((made.cpus, made.memory_mib, made.disk_format), (4, 4096, DiskFormat::Raw));
    assert_eq!((made.handover, made.user.as_str()), (Handover::Agent, "admin"));
    let file = |path: &Option<PathBuf>| fs::read_to_string(path.as_ref().unwrap()).unwrap();
    assert_eq!(file(&made.files.config), TART_CONFIG);
    assert_eq!(file(&made.files.nvram), "nvram");
    let secret = made.files.ssh_password.clone().unwrap();
    assert_eq!(fs::metadata(secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(f.catalog.get("tart").await.unwrap(), made);
}

#[tokio::test]
async fn a_vm_of_tart_that_is_taken_for_another_is_refused() {
    let f = Fixture::new();
    let fields = async |new: NewTemplate| -> Vec<String> {
        f.refused(new).await.into_iter().map(|(pointer, _)| pointer).collect()
    };
    let macos = TART_CONFIG.replace("\"os\":\"linux\",", "");
    for (new, expected) in [
        (NewTemplate { os: Some(GuestOs::Macos), ..of_tart(&f, "a", TART_CONFIG) }, vec!["/os"]),
        (NewTemplate { arch: Some(Arch::X86_64), ..of_tart(&f, "a", TART_CONFIG) }, vec!["/arch"]),
        (NewTemplate { disk_format: Some(DiskFormat::Asif), ..of_tart(&f, "a", TART_CONFIG) }, vec!["/disk_format"]),
        (NewTemplate { driver: Some("qemu".into()), ..of_tart(&f, "a", TART_CONFIG) }, vec!["/config", "/nvram"]),
        (NewTemplate { nvram: None, ..of_tart(&f, "a", TART_CONFIG) }, vec!["/nvram"]),
        (NewTemplate { handover: Some(Handover::Seed), ..of_tart(&f, "a", TART_CONFIG) }, vec!["/handover"]),
        (NewTemplate { kernel: Some(f.at("kernel")), ..of_tart(&f, "a", TART_CONFIG) }, vec!["/kernel"]),
        (
            NewTemplate { os: Some(GuestOs::Macos), ..NewTemplate::of_disk("a", f.at("disk.raw")) },
            vec!["/config", "/nvram"],
        ),
    ] {
        assert_eq!(fields(new).await, expected);
    }
    for garbage in ["", "not json", "{\"version\":1}", &macos[..macos.len() / 2]] {
        assert_eq!(fields(of_tart(&f, "a", garbage)).await, ["/config"], "{garbage}");
    }
    let open = f.at("password");
    fs::write(&open, "admin").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let new = NewTemplate { ssh_password: Some(open), ..of_tart(&f, "a", TART_CONFIG) };
    assert_eq!(fields(new).await, ["/ssh_password"]);
    assert_eq!(f.entries(), EMPTY);
}

/// Another version, without a name.
async fn version(f: &Fixture, cpus: u32) -> Template {
    f.catalog.register(NewTemplate { name: None, cpus: Some(cpus), ..f.template("") }).await.unwrap()
}

async fn previous(f: &Fixture, name: &str) -> Vec<String> {
    f.catalog.standing(name).await.unwrap().previous.into_iter().map(|t| t.digest).collect()
}

#[tokio::test]
async fn a_name_remembers_where_it_pointed() {
    let f = Fixture::new();
    let made = f.catalog.register(f.template("a")).await.unwrap();
    // As it was written before there was a history.
    fs::write(f.at("templates/names/a"), format!("{}\n", made.digest)).unwrap();
    assert_eq!(f.catalog.get("a").await.unwrap(), made);
    let next = version(&f, 2).await;
    let moved = f.catalog.point_name("a", &next.digest, "an update").await.unwrap();
    assert_eq!((moved.from.as_ref(), &moved.to, moved.changed()), (Some(&made.digest), &next.digest, true));
    let standing = f.catalog.standing("a").await.unwrap();
    assert_eq!((standing.names, standing.why.as_deref()), (vec!["a".to_owned()], Some("an update")));
    let old = &standing.previous[0];
    assert_eq!((&old.digest, &old.since, &old.why), (&made.digest, &None, &None));

    assert!(!f.catalog.point_name("a", &next.digest, "again").await.unwrap().changed());
    assert_eq!(f.catalog.standing("a").await.unwrap().why.as_deref(), Some("an update"));
    let (back, template) = f.catalog.roll_back("a", None).await.unwrap();
    assert_eq!((back.to, &template.digest), (made.digest.clone(), &made.digest));
    assert_eq!(f.catalog.get("a").await.unwrap().digest, made.digest);
    assert_eq!(previous(&f, "a").await, slice::from_ref(&next.digest));
    assert_eq!(f.catalog.roll_back("a", None).await.unwrap().1.digest, next.digest);

    let error = f.catalog.roll_back("a", Some(&version(&f, 9).await.digest)).await.unwrap_err();
    assert_eq!(error.code, Code::TemplateNoPrevious);
    assert!(f.entries().iter().all(|e| !e.starts_with("staging/")), "{:?}", f.entries());
}

#[tokio::test]
async fn a_name_that_is_moved_by_many_points_at_one_of_theirs_and_remembers_the_others() {
    let f = Fixture::new();
    let mut digests = Vec::new();
    for cpus in 1..=6 {
        digests.push(version(&f, cpus).await.digest);
    }
    let other = Catalog::open(f.at("templates")).unwrap();
    let moves = (0..48).map(|n| {
        let catalog = if n % 2 == 0 { &f.catalog } else { &other };
        let digest = digests[n % digests.len()].clone();
        async move {
            match n % 8 {
                7 => catalog.roll_back("a", None).await.map(drop).or_else(|e| match e.code {
                    Code::TemplateNotFound | Code::TemplateNoPrevious => Ok(()),
                    _ => Err(e),
                }),
                _ => catalog.point_name("a", &digest, "a race").await.map(drop),
            }
        }
    });
    let watch = async {
        // Whoever looks meanwhile sees one of them, and never none.
        for _ in 0..200 {
            match f.catalog.get("a").await {
                Ok(template) => assert!(digests.contains(&template.digest)),
                Err(e) => assert_eq!(e.code, Code::TemplateNotFound),
            }
            tokio::task::yield_now().await;
        }
    };
    let (done, ()) = tokio::join!(futures_util::future::join_all(moves), watch);
    done.into_iter().for_each(|r| r.unwrap());
    let mut all = previous(&f, "a").await;
    all.push(f.catalog.get("a").await.unwrap().digest);
    all.sort();
    digests.sort();
    assert_eq!(all, digests);
}

#[tokio::test]
async fn a_move_that_was_cut_off_has_not_happened() {
    let f = Fixture::new();
    let made = f.catalog.register(f.template("a")).await.unwrap();
    let next = version(&f, 2).await;
    // Written, and not renamed.
    let (_, staged) = f.catalog.root.stage_name("a", &next.digest, "cut off").unwrap();
    std::mem::forget(staged);
    assert_eq!(f.catalog.get("a").await.unwrap(), made);
    let again = Catalog::open(f.at("templates")).unwrap();
    assert_eq!((again.get("a").await.unwrap(), previous(&f, "a").await), (made, vec![]));
    assert_eq!(fs::read_dir(f.at("templates/staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_taken_is_not_removed() {
    let f = Fixture::new();
    let made = f.catalog.register(f.template("a")).await.unwrap();
    let (taken, kept) = f.catalog.take("a").await.unwrap();
    assert_eq!(taken, made);
    assert_eq!(f.catalog.remove("a").await.unwrap_err().code, Code::TemplateInUse);
    drop(kept);
    let used = f.catalog.standing("a").await.unwrap().last_used_at.unwrap();
    assert!(used >= made.created_at);
    let remover = File::open(&made.files.disk).unwrap();
    remover.lock().unwrap();
    let error = f.catalog.take("a").await.unwrap_err();
    assert_eq!((error.code, error.retry_after), (Code::TemplateInUse, Some(1)));
    drop(remover);
    f.catalog.remove("a").await.unwrap();
    assert_eq!(f.catalog.take("a").await.unwrap_err().code, Code::TemplateNotFound);
}

/// Makes it look as if it had not been used for so long.
fn age(f: &Fixture, digest: &str, hours: u64) {
    let at = SystemTime::now() - Duration::from_secs(hours * 3600);
    let dir = f.at("templates").join(digest.replace(':', "-"));
    let _ = fs::remove_file(dir.join("used"));
    File::open(dir.join("manifest.json")).unwrap().set_modified(at).unwrap();
}

#[tokio::test]
async fn what_nothing_needs_goes_and_the_rest_says_why_it_stays() {
    let f = Fixture::new();
    let vms = Vms::of(&[]);
    f.catalog.settle(vms.clone());
    let mut digests = Vec::new();
    for cpus in 1..=6 {
        let digest = version(&f, cpus).await.digest;
        age(&f, &digest, 100 - u64::from(cpus));
        digests.push(digest);
    }
    let [oldest, older, pinned, used, before, now] = <[String; 6]>::try_from(digests).unwrap();
    f.catalog.point_name("n", &before, "first").await.unwrap();
    f.catalog.point_name("n", &now, "then").await.unwrap();
    f.catalog.pin(&pinned, Some("for the audit")).await.unwrap();
    vms.listed.lock().unwrap().insert(used.clone());

    let dry = PruneRequest { dry_run: true, ..PruneRequest::default() };
    let outlook = f.catalog.prune(&dry).await.unwrap();
    let digests_of = |held: &[Held]| held.iter().map(|h| h.digest.clone()).collect::<Vec<_>>();
    assert_eq!(digests_of(&outlook.removed), [oldest.clone(), older.clone()]);
    assert_eq!(outlook.freed_bytes, outlook.removed.iter().map(|h| h.bytes).sum::<u64>());
    assert!(outlook.freed_bytes >= 2 * 4096 && outlook.total_bytes >= 6 * 4096 && outlook.available_bytes > 0);
    let why = |digest: &String| outlook.kept.iter().find(|h| h.digest == *digest).unwrap().why.clone();
    assert_eq!(why(&pinned), "it is pinned: for the audit");
    assert_eq!(why(&used), "a vm needs it");
    assert_eq!(
        (why(&before), why(&now)),
        ("the name n may be rolled back to it".into(), "the name n points at it".into())
    );
    assert!(vms.told.lock().unwrap().is_empty());
    assert!(f.catalog.get(&oldest).await.is_ok());

    // Taken since the list was made: the lock, or the row that was written meanwhile, keeps it.
    let (_, kept) = f.catalog.take(&older).await.unwrap();
    vms.needed.lock().unwrap().insert(oldest.clone());
    let pruned = f.catalog.prune(&PruneRequest::default()).await.unwrap();
    assert_eq!(pruned.removed, []);
    drop(kept);
    vms.needed.lock().unwrap().clear();
    age(&f, &older, 98);
    // Named since the list was made.
    let only = PruneRequest { max_bytes: Some(pruned.total_bytes - 1), ..PruneRequest::default() };
    assert_eq!(digests_of(&f.catalog.prune(&only).await.unwrap().removed), slice::from_ref(&oldest));
    assert_eq!(removed(&f.catalog).await, slice::from_ref(&older));
    assert_eq!(*vms.told.lock().unwrap(), [oldest, older]);

    vms.none();
    f.catalog.pin(&pinned, None).await.unwrap();
    assert_eq!(removed(&f.catalog).await, [pinned, used]);
    let none = PruneRequest { keep_previous: 0, ..PruneRequest::default() };
    assert_eq!(digests_of(&f.catalog.prune(&none).await.unwrap().removed), [before]);
    assert_eq!(f.catalog.get("n").await.unwrap().digest, now);
    assert_eq!(f.entries().len(), EMPTY.len() + 2);
}

#[tokio::test]
async fn without_knowing_the_vms_nothing_is_pruned() {
    let f = Fixture::new();
    let made = version(&f, 1).await;
    assert_eq!(f.catalog.prune(&PruneRequest::default()).await.unwrap_err().code, Code::Internal);
    f.catalog.tidy().await.unwrap();
    assert_eq!(f.catalog.get(&made.digest).await.unwrap(), made);
}

#[tokio::test]
async fn a_pruning_that_was_cut_off_is_finished_by_the_next_start() {
    let f = Fixture::new();
    let made = version(&f, 1).await;
    // As far as `discard` came.
    let dir = f.at("templates").join(made.digest.replace(':', "-"));
    fs::rename(dir, f.at("templates/staging/grave")).unwrap();
    assert_eq!(f.catalog.get(&made.digest).await.unwrap_err().code, Code::TemplateNotFound);
    Catalog::open(f.at("templates")).unwrap();
    assert_eq!(f.entries(), EMPTY);
}

#[tokio::test]
async fn interrupted_pulls_are_removed_when_nobody_is_at_them() {
    let f = Fixture::new();
    f.catalog.settle(Vms::of(&[]));
    let [idle, busy] = [b"idle", b"busy"].map(|image| oci::Digest::of(image));
    for image in [idle, busy] {
        let staging = f.catalog.staging(image).await.unwrap().unwrap();
        fs::write(staging.journal(), "mayfly pull 1\n").unwrap();
        fs::write(staging.part(Part::Disk), vec![1; 100_000]).unwrap();
    }
    let at_work = f.catalog.staging(busy).await.unwrap().unwrap();
    assert_eq!(removed(&f.catalog).await, [""; 0]);
    let old = PruneRequest { partial_older_than_seconds: Some(3600), ..PruneRequest::default() };
    assert_eq!(f.catalog.prune(&old).await.unwrap().removed, []);
    let all = PruneRequest { partial_older_than_seconds: Some(0), ..PruneRequest::default() };
    let pruned = f.catalog.prune(&all).await.unwrap();
    assert_eq!((pruned.removed.len(), pruned.removed[0].kind), (1, HeldKind::PartialPull));
    assert_eq!(pruned.removed[0].digest, idle.to_string());
    assert!(pruned.removed[0].bytes >= 100_000);
    assert_eq!((pruned.kept.len(), pruned.kept[0].why.as_str()), (1, "it is being pulled"));
    drop(at_work);
    assert_eq!(f.catalog.prune(&all).await.unwrap().removed.len(), 1);
    assert_eq!(f.entries(), EMPTY);
}

/// What one template of the fixture takes.
async fn one_takes(f: &Fixture) -> u64 {
    let made = version(f, 90).await;
    let dry = PruneRequest { dry_run: true, ..PruneRequest::default() };
    f.catalog.settle(Vms::of(&[]));
    let held = f.catalog.prune(&dry).await.unwrap().removed;
    f.catalog.remove(&made.digest).await.unwrap();
    held[0].bytes
}

#[tokio::test]
async fn the_budget_is_kept_by_pruning_and_nothing_is_pruned_in_vain() {
    let f = Fixture::new();
    let one = one_takes(&f).await;
    let limits = Limits { max_bytes: 4 * one, ..Limits::default() };
    let catalog = Catalog::open_with(f.at("templates"), limits).unwrap();
    catalog.settle(Vms::of(&[]));
    let register = async |name: Option<&str>, cpus: u32| {
        let new = NewTemplate { name: name.map(str::to_owned), cpus: Some(cpus), ..f.template("") };
        catalog.register(new).await
    };
    let named = register(Some("a"), 1).await.unwrap();
    let (old, older) = (register(None, 2).await.unwrap(), register(None, 3).await.unwrap());
    age(&f, &old.digest, 10);
    age(&f, &older.digest, 20);
    // The fourth fits beside three, and the fifth does not.
    register(Some("b"), 4).await.unwrap();
    register(Some("c"), 5).await.unwrap();
    assert_eq!(catalog.get(&older.digest).await.unwrap_err().code, Code::TemplateNotFound);
    assert_eq!(catalog.get(&old.digest).await.unwrap().digest, old.digest);

    // A pull that would not fit even then removes nothing, and says why all is kept.
    let error = catalog.room_for_pull(3 * one).await.unwrap_err();
    assert_eq!(error.code, Code::HostFull);
    assert!(error.detail.contains("the name a points at it") && error.detail.contains("at most"), "{}", error.detail);
    assert_eq!(catalog.get(&old.digest).await.unwrap().digest, old.digest);
    // One that does takes the old one's place, and the next one cannot have the same room.
    let room = catalog.room_for_pull(one).await.unwrap();
    assert_eq!(catalog.get(&old.digest).await.unwrap_err().code, Code::TemplateNotFound);
    let error = catalog.room_for_pull(one).await.unwrap_err();
    assert!(error.detail.contains("promised"), "{}", error.detail);
    room.written(one);
    drop(catalog.room_for_pull(one).await.unwrap());
    drop(room);
    // More than was promised is not given back twice.
    let room = catalog.room_for_pull(10).await.unwrap();
    room.written(one);
    drop(room);
    assert_eq!(catalog.root.promised.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert_eq!(catalog.get("a").await.unwrap(), named);
}

#[tokio::test]
async fn two_at_once_are_not_promised_the_same_room() {
    let f = Fixture::new();
    let limits = Limits { max_bytes: 10 << 20, ..Limits::default() };
    let catalog = Catalog::open_with(f.at("templates"), limits).unwrap();
    catalog.settle(Vms::of(&[]));
    let all = futures_util::future::join_all((0..8).map(|_| catalog.room_for_pull(4 << 20))).await;
    assert_eq!(all.iter().filter(|r| r.is_ok()).count(), 2);
    drop(all);
    assert!(catalog.room_for_pull(9 << 20).await.is_ok());
}

#[tokio::test]
async fn a_clone_needs_the_low_water_mark() {
    let f = Fixture::new();
    let made = version(&f, 1).await;
    age(&f, &made.digest, 1);
    let limits = Limits { min_free_bytes: u64::MAX, ..Limits::default() };
    let catalog = Catalog::open_with(f.at("templates"), limits).unwrap();
    catalog.settle(Vms::of(&[]));
    let error = catalog.may_clone(&made.digest).await.unwrap_err();
    assert_eq!((error.code, error.retry_after), (Code::HostFull, Some(60)));
    assert!(error.detail.starts_with("a clone needs ") && error.detail.contains("frees"), "{}", error.detail);
    assert_eq!(catalog.get(&made.digest).await.unwrap().digest, made.digest);
    f.catalog.may_clone(&made.digest).await.unwrap();
}

#[tokio::test]
async fn what_was_not_used_for_long_is_tidied_away() {
    let f = Fixture::new();
    let limits = Limits { keep_unused_days: 1, ..Limits::default() };
    let catalog = Catalog::open_with(f.at("templates"), limits).unwrap();
    catalog.settle(Vms::of(&[]));
    let (old, young) = (version(&f, 5).await, version(&f, 6).await);
    age(&f, &old.digest, 25);
    age(&f, &young.digest, 23);
    let named = f.catalog.register(f.template("a")).await.unwrap();
    age(&f, &named.digest, 1000);
    catalog.tidy().await.unwrap();
    assert_eq!(catalog.get(&old.digest).await.unwrap_err().code, Code::TemplateNotFound);
    assert!(catalog.get(&young.digest).await.is_ok() && catalog.get("a").await.is_ok());
}

/// A template whose disk has three pieces: text, a hole, text.
async fn in_pieces(f: &Fixture, name: &str) -> Template {
    of_tart(f, "unused", TART_CONFIG);
    let image = oci::Digest::of(name.as_bytes());
    let staging = Arc::new(f.catalog.staging(image).await.unwrap().unwrap());
    let contents = [vec![7; 65536], vec![0; 1 << 20], vec![8; 4096]];
    let disk = File::create(staging.part(Part::Disk)).unwrap();
    disk.set_len(contents.iter().map(|c| c.len() as u64).sum()).unwrap();
    disk.write_all_at(&contents[0], 0).unwrap();
    disk.write_all_at(&contents[2], 65536 + (1 << 20)).unwrap();
    fs::copy(f.at("config.json"), staging.part(Part::Config)).unwrap();
    fs::copy(f.at("nvram.bin"), staging.part(Part::Nvram)).unwrap();
    let whole = |part| {
        let bytes = fs::read(staging.part(part)).unwrap();
        FileEntry::Whole { sha256: import::sha256(&bytes), size: bytes.len() as u64 }
    };
    let pieces = contents.iter().map(|c| Piece { sha256: import::sha256(c), size: c.len() as u64 }).collect();
    let files = BTreeMap::from([
        ("disk".to_owned(), FileEntry::in_pieces(pieces)),
        ("config".to_owned(), whole(Part::Config)),
        ("nvram".to_owned(), whole(Part::Nvram)),
    ]);
    let new = NewTemplate {
        config: Some(staging.part(Part::Config)),
        nvram: Some(staging.part(Part::Nvram)),
        ..NewTemplate::of_disk(name, staging.part(Part::Disk))
    };
    let origin = Origin { repository: "registry.example.com/acme/macos".into(), digest: image.to_string() };
    f.catalog.publish_pulled(staging, origin, None, new, files).await.unwrap()
}

/// Changes bytes where they are, as a disk does that goes bad.
fn rot(path: &Path, at: u64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

#[tokio::test]
async fn every_byte_is_read_and_the_part_that_differs_is_named() {
    let f = Fixture::new();
    let whole = f.catalog.register(NewTemplate { kernel: Some(f.at("kernel")), ..f.template("whole") }).await.unwrap();
    let pieces = in_pieces(&f, "pieces").await;
    let faults = async |name: &str| -> Vec<(String, u64, u64)> {
        let found = f.catalog.verify(name).await.unwrap();
        found.faults.into_iter().map(|f| (f.file, f.offset, f.bytes)).collect()
    };
    for name in ["whole", "pieces", whole.digest.as_str()] {
        assert_eq!(faults(name).await, [], "{name}");
    }
    let sound = f.catalog.verify("pieces").await.unwrap();
    assert_eq!(sound.digest, pieces.digest);
    // The hole is not read.
    assert!(sound.bytes > 1 << 20 && (69_632..200_000).contains(&sound.bytes_read), "{sound:?}");
    assert!(f.catalog.standing("whole").await.unwrap().verified_at.is_some());

    let disk = &pieces.files.disk;
    for (at, fault) in [
        (65_535, ("disk".to_owned(), 0, 65_536)),
        // In the hole.
        (700_000, ("disk".to_owned(), 65_536, 1 << 20)),
        (65_536 + (1 << 20), ("disk".to_owned(), 65_536 + (1 << 20), 4096)),
    ] {
        rot(disk, at);
        assert_eq!(faults("pieces").await, [fault], "byte {at}");
        rot(disk, at);
        // It was the reading, or somebody mended it: what is whole is whole.
        assert_eq!(faults("pieces").await, []);
        assert!(f.catalog.standing("pieces").await.unwrap().damage.is_none());
    }
    rot(&whole.files.disk, 4095);
    rot(whole.files.kernel.as_ref().unwrap(), 0);
    assert_eq!(faults("whole").await, [("disk".to_owned(), 0, 4096), ("kernel".to_owned(), 0, 8)]);

    // Cut off, gone, and another manifest.
    fs::set_permissions(disk, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().write(true).open(disk).unwrap().set_len(65_536).unwrap();
    fs::remove_file(pieces.files.nvram.as_ref().unwrap()).unwrap();
    assert_eq!(faults("pieces").await, [("disk".to_owned(), 65_536, (1 << 20) + 4096), ("nvram".to_owned(), 0, 5)]);
    rot(&disk.with_file_name("manifest.json"), 10);
    assert_eq!(faults("pieces").await[0].0, "manifest.json");
    for missing in ["none", "../names/whole", &format!("sha256:{}", "0".repeat(64))] {
        assert_eq!(f.catalog.verify(missing).await.unwrap_err().code, Code::TemplateNotFound, "{missing}");
    }
}

#[tokio::test]
async fn what_is_damaged_is_not_used_until_it_is_replaced() {
    let f = Fixture::new();
    let made = f.catalog.register(f.template("a")).await.unwrap();
    let pulled = in_pieces(&f, "p").await;
    let origin =
        Origin { repository: "registry.example.com/acme/macos".into(), digest: oci::Digest::of(b"p").to_string() };
    let asked = || |_: Option<&oci::Settings>| NewTemplate::of_disk("p", PathBuf::new());
    assert_eq!(f.catalog.known_pieces().await.unwrap().len(), 3);
    assert!(f.catalog.find_pulled(origin.clone(), asked()).await.unwrap().is_some());
    f.catalog.pin("a", Some("keep me")).await.unwrap();
    for template in [&made, &pulled] {
        rot(&template.files.disk, 100);
        assert_eq!(f.catalog.verify(&template.name).await.unwrap().faults.len(), 1);
        let error = f.catalog.take(&template.name).await.unwrap_err();
        assert_eq!(error.code, Code::TemplateDamaged);
        assert!(error.detail.contains("disk from byte 0 on"), "{}", error.detail);
        assert_eq!(f.catalog.may_clone(&template.digest).await.unwrap_err().code, Code::TemplateDamaged);
        let error = f.catalog.point_name("other", &template.digest, "").await.unwrap_err();
        assert_eq!(error.code, Code::TemplateDamaged);
        // It can still be looked at.
        assert_eq!(f.catalog.get(&template.name).await.unwrap().digest, template.digest);
        assert!(f.catalog.standing(&template.name).await.unwrap().damage.is_some());
    }
    assert_eq!(f.catalog.known_pieces().await.unwrap().len(), 0);
    assert!(f.catalog.find_pulled(origin.clone(), asked()).await.unwrap().is_none());

    // A start later it is as damaged; the same content again replaces it, and its pin stays.
    let again = Catalog::open(f.at("templates")).unwrap();
    assert_eq!(again.take("a").await.unwrap_err().code, Code::TemplateDamaged);
    assert_eq!(f.catalog.register(f.template("a")).await.unwrap().digest, made.digest);
    let standing = again.standing("a").await.unwrap();
    assert_eq!((standing.damage, standing.pin.unwrap().why.as_str()), (None, "keep me"));
    assert_eq!(fs::read(&made.files.disk).unwrap(), vec![7; 4096]);
    again.take("a").await.unwrap();
    assert_eq!(in_pieces(&f, "p").await.digest, pulled.digest);
    assert_eq!(f.catalog.verify("p").await.unwrap().faults, []);
    assert_eq!(f.catalog.known_pieces().await.unwrap().len(), 3);

    // A mark that cannot be read is a mark.
    fs::write(made.files.disk.with_file_name("damaged"), "{").unwrap();
    assert_eq!(f.catalog.take("a").await.unwrap_err().code, Code::TemplateDamaged);
}

#[tokio::test]
async fn a_pull_moves_a_name_within_one_repository_only() {
    let f = Fixture::new();
    let (first, second) = (in_pieces(&f, "one").await, in_pieces(&f, "two").await);
    let mine = f.catalog.register(f.template("mine")).await.unwrap();
    assert!(f.catalog.point_pulled("one", &second.digest, "its canary passed").await.unwrap().changed());
    assert_eq!(previous(&f, "one").await, slice::from_ref(&first.digest));
    assert_eq!(f.catalog.point_pulled("new", &first.digest, "").await.unwrap().from, None);
    let error = f.catalog.point_pulled("mine", &second.digest, "").await.unwrap_err();
    assert_eq!(error.code, Code::TemplateExists);
    assert_eq!(f.catalog.get("mine").await.unwrap(), mine);
    // By hand it may go anywhere.
    assert!(f.catalog.point_name("mine", &second.digest, "").await.unwrap().changed());
}

#[tokio::test]
async fn a_damaged_version_is_not_gone_back_to() {
    let f = Fixture::new();
    let [first, second, third] = [version(&f, 1).await, version(&f, 2).await, version(&f, 3).await];
    for v in [&first, &second, &third] {
        f.catalog.point_name("a", &v.digest, "an update").await.unwrap();
    }
    rot(&second.files.disk, 0);
    f.catalog.verify(&second.digest).await.unwrap();
    let error = f.catalog.roll_back("a", Some(&second.digest)).await.unwrap_err();
    assert_eq!(error.code, Code::TemplateNoPrevious);
    assert!(error.detail.contains("damaged"), "{}", error.detail);
    // What it can go back to is kept, and not what is damaged.
    f.catalog.settle(Vms::of(&[]));
    assert_eq!(removed(&f.catalog).await, slice::from_ref(&second.digest));
    assert_eq!(f.catalog.roll_back("a", None).await.unwrap().1.digest, first.digest);
}

#[tokio::test]
async fn a_verification_that_nobody_waits_for_ends() {
    let f = Fixture::new();
    let disk = File::create(f.at("disk.raw")).unwrap();
    // Hours of zeros.
    disk.set_len(1 << 40).unwrap();
    disk.write_all_at(&[1; 4096], 0).unwrap();
    let staging = Arc::new(f.catalog.staging(oci::Digest::of(b"big")).await.unwrap().unwrap());
    fs::rename(f.at("disk.raw"), staging.part(Part::Disk)).unwrap();
    let new = NewTemplate { os: Some(GuestOs::Linux), ..NewTemplate::of_disk("big", staging.part(Part::Disk)) };
    let entry = FileEntry::Whole { sha256: import::sha256(b""), size: 1 << 40 };
    let origin = Origin { repository: "registry.example.com/a".into(), digest: oci::Digest::of(b"big").to_string() };
    let made = f.catalog.publish_pulled(staging, origin, None, new, [("disk".to_owned(), entry)].into()).await.unwrap();
    let verify = f.catalog.verify("big");
    assert!(tokio::time::timeout(Duration::from_millis(50), verify).await.is_err());
    // The reader holds the template; when it has let go, it has ended.
    let disk = File::open(&made.files.disk).unwrap();
    tokio::time::timeout(Duration::from_secs(20), tokio::task::spawn_blocking(move || disk.lock()))
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let standing = f.catalog.standing("big").await.unwrap();
    assert_eq!((standing.verified_at, standing.damage), (None, None));
}
