//! The template's settings in an image of Mayfly's format: the configuration of the manifest. (An image of Tart's
//! format has them in the VM's own configuration.)
//!
//! Unknown keys are ignored, so that a newer Mayfly may add some; incompatible changes get another version. Keys and
//! passwords are never included.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::document;
use crate::domain::{Arch, BudgetsPatch, GuestOs, Handover, Template, new_template::NewTemplate, template::DiskFormat};

const VERSION: u64 = 1;

/// Its fields are in the order of their names, because they are written in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSettings {
    pub arch: Arch,
    /// Those that differ from the defaults.
    #[serde(default, skip_serializing_if = "says_nothing")]
    pub budgets: BudgetsPatch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    pub disk_format: DiskFormat,
    /// Size of the disk in the guest, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u64>,
    pub driver: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<Handover>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    pub os: GuestOs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    pub version: u64,
}

#[derive(Deserialize)]
struct VersionProbe {
    version: u64,
}

impl ImageSettings {
    pub fn of(template: &Template) -> ImageSettings {
        ImageSettings {
            arch: template.arch,
            budgets: template.budgets.clone(),
            cmdline: template.cmdline.clone(),
            cpus: Some(template.cpus),
            disk_format: template.disk_format,
            disk_size: Some(template.disk_virtual_bytes),
            driver: template.driver.clone(),
            handover: Some(template.handover),
            memory_mib: Some(template.memory_mib),
            os: template.os,
            user: Some(template.user.clone()),
            version: VERSION,
        }
    }

    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        document::canonical(self)
    }

    /// Reads the output of `to_bytes`, also of a newer Mayfly with the same version.
    pub fn parse(bytes: &[u8]) -> Result<ImageSettings, String> {
        let wrong = |e: serde_json::Error| format!("cannot be read: {e}");
        let VersionProbe { version } = serde_json::from_slice(bytes).map_err(wrong)?;
        if version != VERSION {
            return Err(format!("has version {version}, and version {VERSION} is read here: update Mayfly"));
        }
        let mut document: Value = serde_json::from_slice(bytes).map_err(wrong)?;
        if let Some(budgets) = document.get_mut("budgets").and_then(Value::as_object_mut) {
            budgets.retain(|name, _| BudgetsPatch::NAMES.contains(&name.as_str()));
            if let Some((name, value)) =
                budgets.iter().find(|(_, v)| v.as_u64().is_none_or(|n| u32::try_from(n).is_err()))
            {
                return Err(format!("has the budget {name} = {value:.40}, expected a whole number"));
            }
        }
        let settings: ImageSettings = serde_json::from_value(document).map_err(wrong)?;
        if let Some((name, least, most)) = settings.budgets.wrong() {
            return Err(format!("has the budget {name} out of its range, expected {least} to {most}"));
        }
        if settings.driver == "tart" {
            return Err("says that the driver is tart, whose images are in Tart's own format".into());
        }
        Ok(settings)
    }

    /// The requested template, with these settings where the request has none.
    pub fn under(&self, asked: NewTemplate) -> NewTemplate {
        NewTemplate {
            driver: asked.driver.or(Some(self.driver.clone())),
            os: asked.os.or(Some(self.os)),
            arch: asked.arch.or(Some(self.arch)),
            disk_format: asked.disk_format.or(Some(self.disk_format)),
            cmdline: asked.cmdline.or(self.cmdline.clone()),
            cpus: asked.cpus.or(self.cpus),
            memory_mib: asked.memory_mib.or(self.memory_mib),
            handover: asked.handover.or(self.handover),
            user: asked.user.or(self.user.clone()),
            ..asked
        }
    }
}

fn says_nothing(budgets: &BudgetsPatch) -> bool {
    *budgets == BudgetsPatch::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = r#"{"version":1,"driver":"qemu","os":"linux","arch":"aarch64","disk_format":"qcow2"}"#;

    fn settings() -> ImageSettings {
        ImageSettings {
            arch: Arch::X86_64,
            budgets: BudgetsPatch { boot_seconds: Some(30), ..BudgetsPatch::default() },
            cmdline: Some("console=ttyS0 root=/dev/vda".into()),
            cpus: Some(3),
            disk_format: DiskFormat::Raw,
            disk_size: Some(1 << 30),
            driver: "cloud-hypervisor".into(),
            handover: Some(Handover::Ssh),
            memory_mib: Some(512),
            os: GuestOs::Linux,
            user: Some("runner".into()),
            version: 1,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let text = String::from_utf8(settings().to_bytes().unwrap()).unwrap();
        let expected = r#"{"arch":"x86_64","budgets":{"boot_seconds":30},"cmdline":"console=ttyS0 root=\/dev\/vda","#;
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(ImageSettings::parse(text.as_bytes()), Ok(settings()));
    }

    #[test]
    fn a_newer_mayfly_may_say_more_and_not_other_things() {
        let more = SMALLEST.replace('}', r#","colour":"red","budgets":{"patience":"none","idle_seconds":60}}"#);
        let read = ImageSettings::parse(more.as_bytes()).unwrap();
        assert_eq!(read.budgets, BudgetsPatch { idle_seconds: Some(60), ..BudgetsPatch::default() });
        assert_eq!((read.cpus, read.user, read.disk_size), (None, None, None));
        for (from, to, expected) in [
            ("1", "2", "version 2"),
            ("qemu", "tart", "Tart's own format"),
            ("linux", "windows", "windows"),
            ("aarch64", "riscv", "riscv"),
            ("qcow2", "vhd", "vhd"),
            (r#""driver":"qemu","#, "", "driver"),
            ("}", r#","budgets":{"boot_seconds":0}}"#, "boot_seconds"),
            ("}", r#","budgets":{"boot_seconds":-1}}"#, "boot_seconds"),
            ("}", r#","budgets":{"stop_grace_seconds":601}}"#, "0 to 600"),
            ("}", r#","budgets":{"max_attempts":"3"}}"#, "max_attempts"),
            ("}", r#","cpus":-1}"#, "-1"),
            ("}", "", "cannot be read"),
        ] {
            let error = ImageSettings::parse(SMALLEST.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }

    #[test]
    fn what_the_request_says_counts_more() {
        let asked = NewTemplate { user: Some("root".into()), ..NewTemplate::of_disk("a", "/a") };
        let made = settings().under(asked);
        assert_eq!((made.user.as_deref(), made.cpus, made.memory_mib), (Some("root"), Some(3), Some(512)));
        assert_eq!((made.driver.as_deref(), made.disk_format), (Some("cloud-hypervisor"), Some(DiskFormat::Raw)));
    }
}
