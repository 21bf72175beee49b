//! Tests of verification and damaged versions.

use super::*;

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
        FileEntry::Whole { sha256: manifest::sha256(&bytes), size: bytes.len() as u64 }
    };
    let pieces = contents.iter().map(|c| RecordedPiece { sha256: manifest::sha256(c), size: c.len() as u64 }).collect();
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
    assert!(f.catalog.status("whole").await.unwrap().verified_at.is_some());

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
        // A read error, or it was repaired: the content is right now.
        assert_eq!(faults("pieces").await, []);
        assert!(f.catalog.status("pieces").await.unwrap().damage.is_none());
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
    let asked = || |_: Option<&oci::ImageSettings>| NewTemplate::of_disk("p", PathBuf::new());
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
        assert!(f.catalog.status(&template.name).await.unwrap().damage.is_some());
    }
    assert_eq!(f.catalog.known_pieces().await.unwrap().len(), 0);
    assert!(f.catalog.find_pulled(origin.clone(), asked()).await.unwrap().is_none());

    // A start later it is as damaged; the same content again replaces it, and its pin stays.
    let again = Catalog::open(f.at("templates")).unwrap();
    assert_eq!(again.take("a").await.unwrap_err().code, Code::TemplateDamaged);
    assert_eq!(f.catalog.register(f.template("a")).await.unwrap().digest, made.digest);
    let status = again.status("a").await.unwrap();
    assert_eq!((status.damage, status.pin.unwrap().why.as_str()), (None, "keep me"));
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
    f.catalog.set_template_usage(Vms::of(&[]));
    assert_eq!(removed(&f.catalog).await, slice::from_ref(&second.digest));
    assert_eq!(f.catalog.roll_back("a", None).await.unwrap().1.digest, first.digest);
}

#[tokio::test]
async fn a_cancelled_verification_ends() {
    let f = Fixture::new();
    let disk = File::create(f.at("disk.raw")).unwrap();
    // Hours of zeros.
    disk.set_len(1 << 40).unwrap();
    disk.write_all_at(&[1; 4096], 0).unwrap();
    let staging = Arc::new(f.catalog.staging(oci::Digest::of(b"big")).await.unwrap().unwrap());
    fs::rename(f.at("disk.raw"), staging.part(Part::Disk)).unwrap();
    let new = NewTemplate { os: Some(GuestOs::Linux), ..NewTemplate::of_disk("big", staging.part(Part::Disk)) };
    let entry = FileEntry::Whole { sha256: manifest::sha256(b""), size: 1 << 40 };
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
    let status = f.catalog.status("big").await.unwrap();
    assert_eq!((status.verified_at, status.damage), (None, None));
}
