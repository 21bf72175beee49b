//! Tests of registration: validation, and recovery after a crash.

use super::*;

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
        NewTemplate { budgets: BudgetsPatch { idle_seconds: Some(1), ..BudgetsPatch::default() }, ..f.template("a") },
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
    again.set_template_usage(vms.clone());
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
async fn a_macos_guest_may_be_for_macosvm() {
    let f = Fixture::new();
    let macos =
        TART_CONFIG.replace("\"os\":\"linux\"", "\"os\":\"darwin\",\"ecid\":\"YQ==\",\"hardwareModel\":\"Yg==\"");
    let of_macosvm = |config: &str| NewTemplate { driver: Some("macosvm".into()), ..of_tart(&f, "mac", config) };
    let made = f.catalog.register(of_macosvm(&macos)).await.unwrap();
    assert_eq!((made.driver.as_str(), made.os, made.handover), ("macosvm", GuestOs::Macos, Handover::Ssh));
    assert_eq!(made.user, "admin");
    let asif = macos.replacen('{', "{\"diskFormat\":\"asif\",", 1);
    let fields = async |new: NewTemplate| -> Vec<String> {
        f.refused(new).await.into_iter().map(|(pointer, _)| pointer).collect()
    };
    // Each of them writes config.json, so one is asked for before the next one is made.
    assert_eq!(fields(of_macosvm(TART_CONFIG)).await, ["/os"]);
    assert_eq!(fields(of_macosvm(&asif)).await, ["/disk_format"]);
    for (new, expected) in [
        (NewTemplate { handover: Some(Handover::Agent), ..of_macosvm(&macos) }, "/handover"),
        (NewTemplate { handover: Some(Handover::Seed), ..of_macosvm(&macos) }, "/handover"),
        (NewTemplate { nvram: None, ..of_macosvm(&macos) }, "/nvram"),
        (NewTemplate { kernel: Some(f.at("kernel")), ..of_macosvm(&macos) }, "/kernel"),
    ] {
        assert_eq!(fields(new).await, [expected]);
    }
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
