use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::*;
use crate::{
    domain::{GuestOs, Template, tart_config::TartConfig},
    templates::Catalog,
};

const IDENTITY: &str = "YnBsaXN0MDDRAQJURUNJRBQAAAAAAAAAABEiM0RVZneICAsQAAAAAAAAAQEAAAAAAAAAAwAAAAAAAAAAAAAAAAAAACE=";
const MODEL: &str = "YnBsaXN0MDDTAQIDBAUGXxAZRGF0YVJlcHJlc2VudGF0aW9uVmVyc2lvbl8QD1BsYXRmb3JtVmVyc2lvbl8QEk1pbmltdW1TdXBwb3J0ZWRPUxQAAAAAAAAAAAAAAAAAAAABEAKjBwgIEAwQAAgPKz1SY2VpawAAAAAAAAEBAAAAAAAAAAkAAAAAAAAAAAAAAAAAAABt";
const DISK_BYTES: u64 = 64 << 20;

struct Fixture {
    dir: tempfile::TempDir,
    catalog: Catalog,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path().join("templates")).unwrap();
        Fixture { dir, catalog }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config() -> Value {
        json!({"version": 1, "os": "darwin", "arch": "arm64", "ecid": IDENTITY, "hardwareModel": MODEL, "cpuCountMin": 2,
            "cpuCount": 4, "memorySizeMin": 4_294_967_296_u64, "memorySize": 8_589_934_592_u64,
            "macAddress": "7a:65:e4:3f:b2:51", "display": {"width": 1024, "height": 768}, "diskFormat": "raw"})
    }

    /// A VM of Tart: a disk with a few blocks and much nothing, and firmware variables.
    fn tart(&self, name: &str, config: &Value) -> PathBuf {
        let dir = self.at(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let disk = File::create_new(dir.join("disk.img")).unwrap();
        disk.write_all_at(b"the beginning", 0).unwrap();
        disk.write_all_at(b"the middle", DISK_BYTES / 2).unwrap();
        disk.set_len(DISK_BYTES).unwrap();
        fs::write(dir.join("nvram.bin"), vec![0xa5; 0x80000]).unwrap();
        dir
    }

    fn request(&self, layout: TemplateLayout, path: &Path, name: &str) -> ImportRequest {
        ImportRequest {
            layout,
            from: ExportDestination::parse(path.to_str().unwrap()).unwrap(),
            template: NewTemplate::of_disk(name, PathBuf::new()),
            identity: Policy::Keep,
            mac: Policy::Regenerate,
            discard_memory: false,
            allow_outside: false,
            allow_backing: false,
            extract_kernel: false,
        }
    }

    async fn take(&self, request: ImportRequest) -> Result<(Template, Vec<Notice>)> {
        let prepared = import(&self.catalog, &Tools::default(), request).await?;
        Ok((self.catalog.register(prepared.template.clone()).await?, prepared.notices))
    }

    async fn import(&self, layout: TemplateLayout, path: &Path, name: &str) -> Result<(Template, Vec<Notice>)> {
        self.take(self.request(layout, path, name)).await
    }

    async fn export(&self, template: &Template, layout: TemplateLayout, to: &Path) -> Result<Exported> {
        let request = ExportRequest {
            layout,
            to: ExportDestination::parse(to.to_str().unwrap())?,
            identity: Policy::Keep,
            mac: Policy::Regenerate,
        };
        export(&self.catalog, &Tools::default(), template.clone(), request).await
    }

    /// What lies about: nothing may, but what was asked for.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.at("templates/staging")).unwrap().count()
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn config_of(template: &Template) -> TartConfig {
    TartConfig::parse(&fs::read(template.files.config.as_ref().unwrap()).unwrap()).unwrap()
}

#[track_caller]
fn same(one: &Path, other: &Path) {
    assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{} and {} differ", one.display(), other.display());
    let blocks = fs::metadata(other).unwrap().blocks() * 512;
    assert!(blocks < 4 << 20, "{} takes {blocks} bytes", other.display());
}

#[track_caller]
fn fields(notices: &[Notice]) -> Vec<&str> {
    notices.iter().map(|n| n.field.as_str()).collect()
}

#[tokio::test]
async fn a_vm_of_tart_goes_into_the_catalog_as_it_is() {
    let f = Fixture::new();
    let mut config = Fixture::config();
    config["keyOfTheFuture"] = json!(1);
    let vm = f.tart("vm", &config);
    fs::write(vm.join("notes"), "mine").unwrap();
    let (template, notices) = f.import(TemplateLayout::Tart, &vm, "base").await.unwrap();
    assert_eq!(
        (template.driver.as_str(), template.os, template.cpus, template.memory_mib),
        ("tart", GuestOs::Macos, 4, 8192)
    );
    assert_eq!(fs::read(template.files.config.as_ref().unwrap()).unwrap(), fs::read(vm.join("config.json")).unwrap());
    assert_eq!(fields(&notices), ["notes"]);
    same(&vm.join("disk.img"), &template.files.disk);

    let out = f.at("out");
    f.export(&template, TemplateLayout::Tart, &out).await.unwrap();
    let written = read_json(&out.join("config.json"));
    assert_ne!(written["macAddress"], config["macAddress"]);
    let mut expected = config.clone();
    expected["macAddress"] = written["macAddress"].clone();
    assert_eq!(written, expected, "what is not known goes along");
    same(&vm.join("disk.img"), &out.join("disk.img"));
    let mode = fs::metadata(out.join("disk.img")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// The worked example of the rules, and the way back.
#[tokio::test]
async fn to_shoes_vz_and_back() {
    let f = Fixture::new();
    let vm = f.tart("vm", &Fixture::config());
    let (template, _) = f.import(TemplateLayout::Tart, &vm, "base").await.unwrap();
    let out = f.at("bundle");
    let exported = f.export(&template, TemplateLayout::ShoesVz, &out).await.unwrap();
    assert_eq!(exported.files.len(), 5);
    assert_eq!(read_json(&out.join("HardwareModel.json")), json!({ "hardwareModel": MODEL }));
    assert_eq!(fs::read(out.join("MachineIdentifier")).unwrap(), MachineIdentity::new(0x1122_3344_5566_7788).bytes());
    let metadata = read_json(&out.join("TemplateMetadata.json"));
    assert_eq!(
        (&metadata["name"], &metadata["cpu_count"], &metadata["memory_gb"]),
        (&json!("base"), &json!(4), &json!(8))
    );
    assert_eq!(metadata["disk_size_gb"], 1);
    same(&vm.join("disk.img"), &out.join("Disk.img"));
    same(&vm.join("nvram.bin"), &out.join("AuxiliaryStorage"));
    for field in ["macAddress", "cpuCountMin", "memorySizeMin", "display"] {
        assert!(fields(&exported.notices).contains(&field), "{field}: {:?}", exported.notices);
    }

    let (back, _) = f.import(TemplateLayout::ShoesVz, &out, "back").await.unwrap();
    let config = config_of(&back);
    assert_eq!((config.hardware_model.as_deref(), config.ecid.as_deref()), (Some(MODEL), Some(IDENTITY)));
    assert_eq!((config.cpus, config.memory_bytes), (4, 8_589_934_592));
    same(&vm.join("disk.img"), &back.files.disk);
    same(&vm.join("nvram.bin"), back.files.nvram.as_ref().unwrap());
    let (again, _) = f.import(TemplateLayout::ShoesVz, &out, "back").await.unwrap();
    assert_eq!(again.digest, back.digest, "asking again gives the same");
    assert_eq!(f.names(), ["bundle", "templates", "vm"]);
    assert_eq!(f.staged(), 0);
}

#[tokio::test]
async fn to_macosvm_and_back() {
    let f = Fixture::new();
    let vm = f.tart("vm", &Fixture::config());
    let (template, _) = f.import(TemplateLayout::Tart, &vm, "base").await.unwrap();
    let out = f.at("machine");
    f.export(&template, TemplateLayout::Macosvm, &out).await.unwrap();
    let description = read_json(&out.join("vm.json"));
    let real = out.canonicalize().unwrap();
    let mac = description["networks"][0]["mac"].clone();
    assert_ne!(mac, "7a:65:e4:3f:b2:51");
    assert_eq!(
        description,
        json!({"version": 1, "os": "macos", "hardwareModel": MODEL, "machineId": IDENTITY, "cpus": 4,
            "ram": 8_589_934_592_u64, "audio": false, "serial": false,
            "storage": [{"type": "disk", "file": real.join("Disk.img"), "readOnly": false},
                {"type": "aux", "file": real.join("AuxiliaryStorage"), "readOnly": false}],
            "networks": [{"type": "nat", "mac": mac}], "displays": [{"width": 1024, "height": 768, "dpi": 72}]})
    );
    let mut request = f.request(TemplateLayout::Macosvm, &out.join("vm.json"), "back");
    request.mac = Policy::Keep;
    let (back, notices) = f.take(request).await.unwrap();
    assert_eq!(fields(&notices), Vec::<&str>::new());
    let config = config_of(&back);
    assert_eq!((config.hardware_model.as_deref(), config.ecid.as_deref()), (Some(MODEL), Some(IDENTITY)));
    assert_eq!(json!(config.mac.to_string()), mac);
    assert_eq!(config.display.map(|d| (d.width, d.height)), Some((1024, 768)));
    same(&vm.join("disk.img"), &back.files.disk);
    same(&vm.join("nvram.bin"), back.files.nvram.as_ref().unwrap());

    // A fresh identity is said, and is another one.
    let mut request = f.request(TemplateLayout::Macosvm, &out, "fresh");
    request.identity = Policy::Regenerate;
    let (fresh, notices) = f.take(request).await.unwrap();
    assert!(fields(&notices).contains(&"ecid"));
    assert_ne!(config_of(&fresh).ecid.as_deref(), Some(IDENTITY));
}

#[tokio::test]
async fn an_identity_is_found_in_the_auxiliary_storage_or_made_up_once() {
    let f = Fixture::new();
    let dir = f.at("bundle");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("Disk.img"), vec![1; 4096]).unwrap();
    let mut aux = vec![0xa5; 0x80000];
    fs::write(dir.join("AuxiliaryStorage"), &aux).unwrap();
    // The bytes themselves, as older programs have them.
    fs::write(dir.join("HardwareModel"), HardwareModel::from_base64(MODEL).unwrap().bytes()).unwrap();
    let (made_up, notices) = f.import(TemplateLayout::ShoesVz, &dir, "one").await.unwrap();
    assert_eq!(fields(&notices), ["ecid", "TemplateMetadata.json"]);
    assert_eq!((made_up.cpus, made_up.memory_mib), (2, 4096));
    assert_eq!(f.import(TemplateLayout::ShoesVz, &dir, "one").await.unwrap().0.digest, made_up.digest);

    aux[0x6c804..0x6c804 + 15].copy_from_slice(b"\x04ECID\x02\x08\x11\x22\x33\x44\x55\x66\x77\x88");
    fs::write(dir.join("AuxiliaryStorage"), &aux).unwrap();
    let metadata = json!({"created_at": "$(date -u)", "memory_gb": 6, "cpu_count": 3, "features": []});
    fs::write(dir.join("TemplateMetadata.json"), metadata.to_string()).unwrap();
    let (found, notices) = f.import(TemplateLayout::ShoesVz, &dir, "two").await.unwrap();
    assert_eq!(config_of(&found).ecid.as_deref(), Some(IDENTITY));
    assert_eq!((found.cpus, found.memory_mib), (3, 6144));
    assert_eq!(fields(&notices), ["ecid", "TemplateMetadata.json/created_at", "TemplateMetadata.json/features"]);
}

#[tokio::test]
async fn sources_that_make_no_template_are_refused_by_name() {
    let f = Fixture::new();
    let base = Fixture::config();
    let changed = |key: &str, value: Value| {
        let mut config = base.clone();
        config[key] = value;
        config
    };
    type Spoil = fn(&Path);
    let nothing: Spoil = |_| {};
    let cases: Vec<(&str, Value, Spoil, Code, &str)> = vec![
        ("no-model", changed("hardwareModel", Value::Null), nothing, Code::TemplateInvalid, "hardwareModel"),
        (
            "bad-model",
            changed("hardwareModel", json!(IDENTITY)),
            nothing,
            Code::TemplateInvalid,
            "config.json/hardwareModel",
        ),
        ("bad-id", changed("ecid", json!("YQ==")), nothing, Code::TemplateInvalid, "config.json/ecid"),
        (
            "no-nvram",
            base.clone(),
            |d| fs::remove_file(d.join("nvram.bin")).unwrap(),
            Code::TemplateInvalid,
            "nvram.bin",
        ),
        (
            "link",
            base.clone(),
            |d| {
                fs::remove_file(d.join("disk.img")).unwrap();
                symlink("/etc/passwd", d.join("disk.img")).unwrap();
            },
            Code::TemplateInvalid,
            "disk.img",
        ),
        (
            "asleep",
            base.clone(),
            |d| fs::write(d.join("state.vzvmsave"), "x").unwrap(),
            Code::SourceSuspended,
            "state.vzvmsave",
        ),
    ];
    for (name, config, spoil, code, field) in cases {
        let vm = f.tart(name, &config);
        spoil(&vm);
        let error = f.import(TemplateLayout::Tart, &vm, name).await.unwrap_err();
        assert_eq!(error.code, code, "{name}: {error}");
        assert!(error.detail.contains(field), "{name}: {error}");
    }
    let mut request = f.request(TemplateLayout::Tart, &f.at("asleep"), "asleep");
    request.discard_memory = true;
    assert_eq!(fields(&f.take(request).await.unwrap().1), ["state.vzvmsave"]);

    // Its disk is a layer on another one.
    let vm = f.tart("stacked", &base);
    fs::rename(vm.join("disk.img"), vm.join("overlay.asif")).unwrap();
    let error = f.import(TemplateLayout::Tart, &vm, "stacked").await.unwrap_err();
    assert_eq!(error.code, Code::TemplateInvalid, "{error}");
    assert!(error.detail.contains("overlay.asif") && error.detail.contains("layer on another one"), "{error}");

    // Something answers on the socket.
    let vm = f.tart("awake", &base);
    let _listener = std::os::unix::net::UnixListener::bind(vm.join("control.sock")).unwrap();
    assert_eq!(f.import(TemplateLayout::Tart, &vm, "awake").await.unwrap_err().code, Code::SourceRunning);
    assert_eq!(f.staged(), 0);
}

#[tokio::test]
async fn a_vm_json_does_not_lead_elsewhere() {
    let f = Fixture::new();
    let vm = f.tart("vm", &Fixture::config());
    let good = json!({"os": "macos", "hardwareModel": MODEL, "machineId": IDENTITY, "cpus": 2, "ram": 1 << 30, "serial": true,
        "shares": [{"path": "/x"}], "networks": [{"type": "br0"}, {}],
        "storage": [{"type": "disk", "file": "disk.img"}, {"type": "aux", "file": "nvram.bin"},
            {"type": "disk", "file": "more.img", "readOnly": true}, {"type": "usb", "file": "u"}]});
    let write = |value: &Value| fs::write(vm.join("vm.json"), value.to_string()).unwrap();
    write(&good);
    let (_, notices) = f.import(TemplateLayout::Macosvm, &vm, "good").await.unwrap();
    for field in [
        "vm.json/storage/2",
        "vm.json/storage/3",
        "vm.json/networks/0",
        "vm.json/networks/1",
        "vm.json/shares",
        "vm.json/serial",
    ] {
        assert!(fields(&notices).contains(&field), "{field}: {notices:?}");
    }
    fs::write(f.at("outside.img"), vec![1; 512]).unwrap();
    symlink(f.at("outside.img"), vm.join("link.img")).unwrap();
    let outside = f.at("outside.img");
    let cases: [(&str, Value, Code, &str); 10] = [
        ("/storage/0/file", json!("../outside.img"), Code::TemplateInvalid, "leads upwards"),
        ("/storage/0/file", json!(outside), Code::TemplateInvalid, "outside of"),
        ("/storage/0/file", json!("link.img"), Code::TemplateInvalid, "outside of"),
        ("/storage/0/file", json!("nvram.bin"), Code::TemplateInvalid, "one file"),
        ("/storage/2/readOnly", json!(false), Code::LayoutDisk, "another writable disk"),
        ("/storage/1/type", json!("usb"), Code::TemplateInvalid, "type aux"),
        ("/hardwareModel", json!(null), Code::TemplateInvalid, "vm.json/hardwareModel"),
        ("/machineId", json!(MODEL), Code::TemplateInvalid, "vm.json/machineId"),
        ("/os", json!("linux"), Code::LayoutGuest, "linux"),
        ("/cpus", json!(0), Code::TemplateInvalid, "vm.json/cpus"),
    ];
    for (pointer, value, code, says) in cases {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        write(&bad);
        let error = f.import(TemplateLayout::Macosvm, &vm, "bad").await.unwrap_err();
        assert_eq!(error.code, code, "{pointer}: {error}");
        assert!(error.detail.contains(says), "{pointer}: {error}");
    }
    write(&good);
    fs::write(vm.join("vm.pid"), format!("{}\n", std::process::id())).unwrap();
    assert_eq!(f.import(TemplateLayout::Macosvm, &vm, "bad").await.unwrap_err().code, Code::SourceRunning);
}

#[tokio::test]
async fn exports_that_cannot_be_leave_nothing() {
    let f = Fixture::new();
    let mut config = Fixture::config();
    config["diskFormat"] = json!("asif");
    let (asif, _) = f.import(TemplateLayout::Tart, &f.tart("a", &config), "asif").await.unwrap();
    let linux = json!({"version": 1, "os": "linux", "arch": "arm64", "cpuCountMin": 1, "cpuCount": 1, "memorySizeMin": 1 << 29,
        "memorySize": 1 << 29, "macAddress": "7a:65:e4:3f:b2:51"});
    let (linux, _) = f.import(TemplateLayout::Tart, &f.tart("l", &linux), "linux").await.unwrap();
    let (mac, _) = f.import(TemplateLayout::Tart, &f.tart("m", &Fixture::config()), "mac").await.unwrap();
    for (template, layout, code) in [
        (&asif, TemplateLayout::ShoesVz, Code::LayoutDisk),
        (&asif, TemplateLayout::Macosvm, Code::LayoutDisk),
        (&linux, TemplateLayout::ShoesVz, Code::LayoutGuest),
        (&linux, TemplateLayout::Macosvm, Code::LayoutGuest),
        (&mac, TemplateLayout::Qcow2, Code::LayoutGuest),
        (&mac, TemplateLayout::Raw, Code::LayoutGuest),
    ] {
        let error = f.export(template, layout, &f.at("x")).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
    }
    fs::create_dir(f.at("taken")).unwrap();
    let error = f.export(&mac, TemplateLayout::Tart, &f.at("taken")).await.unwrap_err();
    assert_eq!(error.code, Code::DestinationExists);
    let error = f.export(&mac, TemplateLayout::Tart, &f.at("templates/names/x")).await.unwrap_err();
    assert_eq!(error.code, Code::RequestInvalid);
    for path in ["relative", "/a/../b", "s3://bucket", "https://host/path"] {
        assert_eq!(ExportDestination::parse(path).unwrap_err().code, Code::RequestInvalid, "{path}");
    }
    // What a crash left is taken away by the next export; what is not ours stays.
    let left = f.at(&format!(".mayfly-export-{}", uuid::Uuid::new_v4()));
    fs::create_dir(&left).unwrap();
    fs::create_dir(f.at(".mayfly-export-mine")).unwrap();
    f.export(&mac, TemplateLayout::Tart, &f.at("out")).await.unwrap();
    assert_eq!(f.names(), [".mayfly-export-mine", "a", "l", "m", "out", "taken", "templates"]);
}

fn qemu_img(dir: &Path, args: &[&str]) {
    let out = Command::new("qemu-img").args(args).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test]
async fn a_layered_image_becomes_one_and_nothing_else_is_followed() {
    let f = Fixture::new();
    let dir = f.at("images");
    fs::create_dir(&dir).unwrap();
    let bytes: Vec<u8> = (0..2u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(dir.join("base.raw"), &bytes).unwrap();
    fs::write(f.at("outside.raw"), &bytes).unwrap();
    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "golden.qcow2"]);
    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "-b", "golden.qcow2", "-F", "qcow2", "top.qcow2"]);
    let (flat, notices) = f.import(TemplateLayout::Qcow2, &dir.join("top.qcow2"), "flat").await.unwrap();
    assert_eq!(fields(&notices), ["disk"]);
    f.export(&flat, TemplateLayout::Raw, &f.at("out.raw")).await.unwrap();
    assert!(fs::read(f.at("out.raw")).unwrap() == bytes);
    f.export(&flat, TemplateLayout::Qcow2, &f.at("out.qcow2")).await.unwrap();
    qemu_img(f.dir.path(), &["compare", "-q", "out.qcow2", "out.raw"]);

    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "-b", "../outside.raw", "-F", "raw", "leads-out.qcow2"]);
    let error = f.import(TemplateLayout::Qcow2, &dir.join("leads-out.qcow2"), "out").await.unwrap_err();
    assert!(error.detail.contains("allow_backing"), "{error}");
    let mut request = f.request(TemplateLayout::Qcow2, &dir.join("leads-out.qcow2"), "out");
    request.allow_backing = true;
    f.take(request).await.unwrap();

    // Never, whatever the caller says.
    for (name, backing, says) in [
        ("url", "nbd://127.0.0.1:1/x", "only files"),
        ("json", "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", "only files"),
        ("device", "/dev/zero", "regular file"),
    ] {
        let name = format!("{name}.qcow2");
        qemu_img(&dir, &["create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", &name, "1M"]);
        let mut request = f.request(TemplateLayout::Qcow2, &dir.join(&name), "bad");
        request.allow_backing = true;
        let error = f.take(request).await.unwrap_err();
        assert!(error.detail.contains(says), "{error}");
    }
    for (name, below) in [("hen.qcow2", "egg.qcow2"), ("egg.qcow2", "hen.qcow2")] {
        qemu_img(&dir, &["create", "-q", "-f", "qcow2", "-u", "-b", below, "-F", "qcow2", name, "1M"]);
    }
    let error = f.import(TemplateLayout::Qcow2, &dir.join("hen.qcow2"), "bad").await.unwrap_err();
    assert!(error.detail.contains("its own backing file"), "{error}");
    assert_eq!(f.staged(), 0);
}
