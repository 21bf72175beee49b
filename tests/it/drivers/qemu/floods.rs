//! Guests that write as much as they can to what QEMU keeps in files. No driver waits for their end here, as when the
//! service does not run.

use std::{os::unix::fs::MetadataExt as _, path::PathBuf, sync::Arc, time::Duration};

use mayfly::{
    domain::{InstanceName, VmId, event::GoneCause},
    drivers::{
        Driver as _,
        qemu::{Qemu, Settings},
    },
};

use super::{QemuRig, settings};

/// Writes to the serial line, for ever: `mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp .-1`.
const WRITE: &[u8] = &[0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];

/// Writes "crash loaded" to the panic device, for ever; QEMU reports each as an event. In protected mode, because the
/// registers of the device are in memory above 1 MiB:
///
/// ```text
/// cli; xor ax, ax; mov ds, ax; lgdt [gdtr]; mov eax, cr0; or al, 1; mov cr0, eax; jmp 8:pm
/// pm:    mov ax, 16; mov ds, ax; mov ebx, 0x80000000
/// find:  mov eax, ebx; mov dx, 0xcf8; out dx, eax; mov dx, 0xcfc; in eax, dx
///        cmp eax, 0x00111b36; je found; add ebx, 0x800; jmp find
/// found: lea eax, [ebx + 0x10]; mov dx, 0xcf8; out dx, eax; mov dx, 0xcfc; in eax, dx
///        and eax, 0xfffffff0; mov edi, eax
///        lea eax, [ebx + 4]; mov dx, 0xcf8; out dx, eax; mov dx, 0xcfc; mov eax, 2; out dx, eax
/// again: mov byte [edi], 2; jmp again
/// gdt:   dq 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
/// gdtr:  dw 23; dd gdt
/// ```
#[rustfmt::skip]
const PANIC: &[u8] = &[
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0x0f, 0x01, 0x16, 0x88, 0x7c, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66,
    0xea, 0x1b, 0x7c, 0x00, 0x00, 0x08, 0x00, 0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0xbb, 0x00, 0x00, 0x00, 0x80, 0x89, 0xd8,
    0x66, 0xba, 0xf8, 0x0c, 0xef, 0x66, 0xba, 0xfc, 0x0c, 0xed, 0x3d, 0x36, 0x1b, 0x11, 0x00, 0x74, 0x08, 0x81, 0xc3, 0x00,
    0x08, 0x00, 0x00, 0xeb, 0xe5, 0x8d, 0x43, 0x10, 0x66, 0xba, 0xf8, 0x0c, 0xef, 0x66, 0xba, 0xfc, 0x0c, 0xed, 0x83, 0xe0,
    0xf0, 0x89, 0xc7, 0x8d, 0x43, 0x04, 0x66, 0xba, 0xf8, 0x0c, 0xef, 0x66, 0xba, 0xfc, 0x0c, 0xb8, 0x02, 0x00, 0x00, 0x00,
    0xef, 0xc6, 0x07, 0x02, 0xeb, 0xfb, 0x8d, 0xb6, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, 0x17, 0x00, 0x70, 0x7c,
    0x00, 0x00,
];

const CONSOLE_LIMIT: u64 = 256 << 10;

impl QemuRig {
    fn with_small_console() -> Self {
        let mut rig = Self::new();
        let settings = Settings { console_limit: CONSOLE_LIMIT, ..settings(rig.dir.path()) };
        rig.driver = Arc::new(Qemu::new(settings).unwrap());
        rig
    }

    fn file(&self, name: &InstanceName, file: &str) -> PathBuf {
        self.dir.path().join("instances").join(name.as_str()).join(file)
    }

    /// Until QEMU has written that much, this file never uses more on disk than its limit and what is written between
    /// two looks of the gateway.
    async fn stays_below(&self, name: &InstanceName, file: &str, limit: u64, written: u64) {
        let (path, pid) = (self.file(name, file), self.pid(name));
        let io = format!("/proc/{}/io", pid.as_raw_nonzero());
        let until = tokio::time::Instant::now() + Duration::from_secs(100);
        loop {
            let count = std::fs::read_to_string(&io).unwrap();
            let count: u64 = count.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap();
            let used = path.metadata().unwrap().blocks() * 512;
            assert!(used <= limit, "{file} uses {used} bytes");
            if count > written {
                return;
            }
            assert!(tokio::time::Instant::now() < until, "QEMU wrote {count} bytes only");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_console_never_exceeds_its_limit() {
    let rig = QemuRig::with_small_console();
    let spec = rig.bare(VmId::mint(), WRITE);
    rig.driver.create(&spec).await.unwrap();
    rig.driver.start(&spec).await.unwrap();
    rig.stays_below(&spec.name, "console.log", 5 * CONSOLE_LIMIT, 10 * CONSOLE_LIMIT).await;
    let log = std::fs::read_to_string(rig.file(&spec.name, "gateway.log")).unwrap();
    assert_eq!(log.matches("exceed its limit").count(), 1, "{log}");
    rig.driver.destroy(&spec.name).await.unwrap();
}

#[tokio::test]
async fn events_that_a_guest_causes_fill_no_disk_and_hide_no_end() {
    let rig = QemuRig::new();
    let spec = rig.bare(VmId::mint(), PANIC);
    rig.driver.create(&spec).await.unwrap();
    rig.driver.start(&spec).await.unwrap();
    rig.stays_below(&spec.name, "watch.log", 12 << 20, 40 << 20).await;
    let events = rig.file(&spec.name, "watch.log");
    assert!(events.metadata().unwrap().len() > 30 << 20, "the guest caused no events");
    // Its end is known, and read from the end of the log alone.
    rustix::process::kill_process(rig.pid(&spec.name), rustix::process::Signal::TERM).unwrap();
    let cause = tokio::time::timeout(Duration::from_secs(20), rig.driver.ended(&spec.name)).await.unwrap().unwrap();
    assert_eq!(cause, GoneCause::HostStop);
    rig.driver.destroy(&spec.name).await.unwrap();
}
