//! An image after another version of it: what comes over the network, what is written, and what is not believed.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use super::*;

/// Of a chunk: a whole number of any file system's blocks, so that it can be shared.
const CHUNK: usize = 4 << 20;

fn noise(seeds: impl IntoIterator<Item = u64>) -> Vec<Content> {
    seeds.into_iter().map(|seed| Content::Noise(seed, CHUNK)).collect()
}

#[tokio::test]
async fn an_update_costs_what_changed_and_little_more() {
    let registry = Registry::open().await;
    let proxy = Proxy::before(&registry).start().await;
    let host = Host::new(&registry);
    let chunk = |seed| Content::Noise(seed, 1 << 20);
    let old: Vec<Content> = (0..16).map(chunk).collect();
    let mut new = old.clone();
    (new[3], new[11]) = (chunk(103), chunk(111));
    let reference = format!("{}/{REPOSITORY}", proxy.address());
    TartImage::new(&old, Encoding::Independent).push(&registry, REPOSITORY, "latest").await;
    host.pull(&reference, "macos").await.unwrap();

    let new = TartImage::new(&new, Encoding::Independent);
    new.push(&registry, REPOSITORY, "latest").await;
    let before = proxy.sent();
    same(&host.pull(&reference, "macos").await.unwrap(), &new);
    let (sent, changed) = (proxy.sent() - before, new.chunk(3).blob.len() + new.chunk(11).blob.len());
    assert!(sent as f64 <= 1.02 * changed as f64, "{sent} bytes for {changed} that changed");
}

#[tokio::test]
async fn what_was_noted_of_a_disk_that_is_gone_is_forgotten() {
    let registry = Registry::open().await;
    let image = image(400);
    image.push(&registry, REPOSITORY, "1").await;
    let proxy = Proxy::before(&registry).start().await;
    let host = Host::new(&registry);
    let reference = format!("{}/{REPOSITORY}:1", proxy.address());
    let templates = host.dir.path().join("templates");
    proxy.on(Rule::get(&format!("*{}", image.chunk(6).digest()), Fault::Hold { after: 1000 }));
    tokio::select! {
        pulled = host.pull(&reference, "macos") => panic!("{pulled:?}"),
        () = until_journal(&templates, wanted(&image).len() - 1) => {}
    }
    let staging = fs::read_dir(templates.join("staging")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(staging.join("template/disk")).unwrap();

    // The next pull makes another disk of the same size, and ends before anything is on it.
    proxy.clear();
    proxy.on(Rule::get(BLOBS, Fault::Hold { after: 0 }));
    let before = proxy.seen().len();
    tokio::select! {
        pulled = host.pull(&reference, "macos") => panic!("{pulled:?}"),
        () = proxy.until("a blob is held", |all| all[before..].iter().any(|s| s.path.contains("/blobs/"))) => {}
    }
    assert!(staging.join("template/disk").exists());
    proxy.clear();
    same(&host.pull(&reference, "macos").await.unwrap(), &image);
}

/// Only Linux says what was resident at most.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_does_not_grow_with_the_image() {
    let registry = Registry::open().await;
    let mut peaks = Vec::new();
    for (repository, chunks) in [("acme/small", 1), ("acme/large", 16)] {
        TartImage::new(&noise(0..chunks), Encoding::Stored).push(&registry, repository, "1").await;
        let dir = tempfile::tempdir().unwrap();
        let mut child = child(dir.path(), &format!("{}/{repository}:1", registry.address), &registry.authority.file());
        let ended = tokio::task::spawn_blocking(move || child.0.wait().unwrap()).await.unwrap();
        assert!(ended.success());
        let peak = fs::read_to_string(dir.path().join("peak")).unwrap();
        peaks.push(peak.trim().parse::<u64>().unwrap());
    }
    assert!(peaks[1] < peaks[0] + (40 << 10), "resident at most, in KiB: {peaks:?}");
}

/// Runs the test below, again, in a mount namespace of its own with a new file system of this type. False: that cannot be here.
fn on_a_new(file_system: &str, options: &[&str]) -> bool {
    let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let (image, mounted) = (dir.path().join("image"), dir.path().join("mounted"));
    fs::File::create_new(&image).unwrap().set_len(1 << 30).unwrap();
    fs::create_dir(&mounted).unwrap();
    let prepare = "mkfs=$1 image=$2 mounted=$3; shift 3; PATH=$PATH:/usr/sbin:/sbin; test_binary=$1; shift; \
                   \"$mkfs\" -q \"$@\" \"$image\" && mount -o loop \"$image\" \"$mounted\" || exit 77; \
                   MAYFLY_TEST_CLONES_DIR=$mounted exec \"$test_binary\" --exact \
                   pull::updates::on_a_file_system_that_clones --ignored --nocapture";
    let ran = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", prepare, "sh", &format!("mkfs.{file_system}")])
        .args([&image, &mounted, &std::env::current_exe().unwrap()])
        .args(options)
        .stdin(Stdio::null())
        .output();
    let (said, code) = match &ran {
        Ok(ran) => (String::from_utf8_lossy(&ran.stderr).into_owned(), ran.status.code()),
        Err(e) => (e.to_string(), Some(77)),
    };
    match code {
        Some(0) => true,
        // Unsharing needs root, and so does mounting; one of them says so.
        Some(77 | 1) if !said.contains("panicked") => {
            eprintln!("NOT CHECKED on {file_system}, which cannot be mounted here: {}", said.trim());
            false
        }
        _ => panic!("on {file_system}: {code:?}\n{said}"),
    }
}

/// Needs root, and the tools to make the file systems; where they are not, it says so and is content with the plain way, which
/// all other tests take.
#[test]
fn an_update_begins_as_a_clone_where_the_file_system_can() {
    on_a_new("xfs", &["-m", "reflink=1"]);
    on_a_new("btrfs", &[]);
}

/// Bytes that are taken of the file system.
fn taken(dir: &Path) -> u64 {
    rustix::fs::sync();
    let stat = rustix::fs::statvfs(dir).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

#[tokio::test]
#[ignore = "is started by another test"]
async fn on_a_file_system_that_clones() {
    let mounted = PathBuf::from(std::env::var("MAYFLY_TEST_CLONES_DIR").expect("started by another test"));
    let registry = Registry::open().await;
    let proxy = Proxy::before(&registry).start().await;
    let dir = tempfile::tempdir_in(&mounted).unwrap();
    let catalog = Catalog::open(dir.path().join("templates")).unwrap();
    let puller = Puller::new(catalog.clone(), settings(registry.authority.file()), Keys::none());
    let host = Host { dir, puller, catalog };
    let reference = format!("{}/{REPOSITORY}", proxy.address());
    let big = CHUNK as u64;

    let old = TartImage::new(&noise(0..8), Encoding::Independent);
    old.push(&registry, REPOSITORY, "latest").await;
    let first = host.pull(&reference, "macos").await.unwrap();
    same(&first, &old);

    // One chunk is another one, one has become zeros, one is a copy of one that is elsewhere, and the disk is longer.
    let mut chunks = noise(0..9);
    (chunks[2], chunks[4], chunks[5]) = (Content::Noise(102, CHUNK), Content::Zeros(CHUNK), Content::Noise(7, CHUNK));
    let new = TartImage::new(&chunks, Encoding::Independent);
    new.push(&registry, REPOSITORY, "latest").await;
    let (before, asked) = (taken(&mounted), blobs(&proxy.seen()).len());
    let second = host.pull(&reference, "macos").await.unwrap();
    same(&second, &new);
    same(&first, &old);
    assert_eq!(fs::metadata(&second.files.disk).unwrap().mode() & 0o7777, 0o444);
    let fetched: BTreeSet<String> = blobs(&proxy.seen()).split_off(asked).into_iter().map(|(d, _)| d).collect();
    assert_eq!(fetched, [0, 3, 9, 10].map(|layer| new.layers[layer].digest()).into());
    let more = taken(&mounted) - before;
    assert!(more < 3 * big, "{more} bytes for two chunks of {big}");

    // Interrupted in its middle, it goes on, and believes nothing of what is there but what was noted.
    let mut chunks = noise(0..8);
    (chunks[1], chunks[3]) = (Content::Noise(201, CHUNK), Content::Zeros(CHUNK));
    let third = TartImage::new(&chunks, Encoding::Independent);
    third.push(&registry, REPOSITORY, "latest").await;
    let held = third.chunk(1).digest();
    proxy.on(Rule::get(&format!("*{held}"), Fault::Hold { after: big / 2 }));
    let templates = host.dir.path().join("templates");
    tokio::select! {
        pulled = host.pull(&reference, "macos") => panic!("{pulled:?}"),
        // Configuration, nvram, and what is as it was.
        () = until_journal(&templates, 2 + 6) => {}
    }
    proxy.clear();
    let staging = fs::read_dir(templates.join("staging")).unwrap().next().unwrap().unwrap().path();
    let disk = fs::OpenOptions::new().write(true).open(staging.join("template/disk")).unwrap();
    disk.write_all_at(b"of another one", big + 17).unwrap();
    disk.write_all_at(b"of another one", 3 * big + 17).unwrap();
    // As if the process had died before this was noted.
    let journal = fs::read_to_string(staging.join("journal")).unwrap();
    let unnoted: String = journal.lines().filter(|l| !l.starts_with("7 ")).map(|l| format!("{l}\n")).collect();
    assert_ne!(journal, unnoted);
    fs::write(staging.join("journal"), unnoted).unwrap();
    disk.write_all_at(b"of another one", 6 * big + 17).unwrap();
    let asked = blobs(&proxy.seen()).len();
    let pulled = host.pull(&reference, "macos").await.unwrap();
    same(&pulled, &third);
    same(&second, &new);
    let fetched: Vec<String> = blobs(&proxy.seen()).split_off(asked).into_iter().map(|(d, _)| d).collect();
    assert_eq!(fetched, [held]);

    // What rots on this host's disk is not taken over.
    for template in [&first, &second, &pulled] {
        fs::set_permissions(&template.files.disk, fs::Permissions::from_mode(0o600)).unwrap();
        let disk = fs::OpenOptions::new().write(true).open(&template.files.disk).unwrap();
        disk.write_all_at(b"rotten", 6 * big + 99).unwrap();
    }
    let mut chunks = noise(0..8);
    chunks[0] = Content::Noise(300, CHUNK);
    let fourth = TartImage::new(&chunks, Encoding::Independent);
    fourth.push(&registry, REPOSITORY, "latest").await;
    same(&host.pull(&reference, "macos").await.unwrap(), &fourth);
    assert_eq!(host.staged(), 0);
}
