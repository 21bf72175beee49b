//! The messages of `tart run` about the end of its guest. There is no other evidence: its exit status is 0 for a
//! crash, too.

use crate::domain::event::GoneCause;

/// The kernel's limit of macOS guests is reached.
pub const LIMIT: &str = "The number of VMs exceeds the system limit";

const POWERED_OFF: &str = "guest has stopped the virtual machine";
/// Begins like the one above.
const CRASHED: &str = "guest has stopped the virtual machine due to error";
const STOPPED: &str = "Stopping VM...";
const SUSPENDED: &str = "snapshot created successfully!";
const NOT_SUSPENDED: &str = "Failed to suspend the VM";
const SOFTNET: &str = "Softnet process terminated prematurely";

/// The cause of the guest's end, from the output and the error output of its latest run. The first message counts: a
/// guest that powered off was not stopped by a stop that came a moment later.
pub fn cause(out: &str, err: &str) -> Option<GoneCause> {
    let reported = out.lines().map(str::trim).find_map(|line| {
        if line.starts_with(CRASHED) || is_network_loss(line) {
            Some(GoneCause::HypervisorError)
        } else if line.starts_with(POWERED_OFF) {
            Some(GoneCause::GuestPowerOff)
        } else if line == STOPPED {
            Some(GoneCause::HostStop)
        } else if line.starts_with(SUSPENDED) || line.starts_with(NOT_SUSPENDED) {
            // Only another program suspends a guest; if its memory cannot be saved, the guest is lost.
            Some(GoneCause::HostPause)
        } else {
            None
        }
    });
    reported.or_else(|| err.contains(SOFTNET).then_some(GoneCause::HypervisorError))
}

fn is_network_loss(line: &str) -> bool {
    line.starts_with("virtual machine's network attachment ") && line.contains(" has been disconnected with error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_word() {
        for (out, cause) in [
            ("guest has stopped the virtual machine\n", Some(GoneCause::GuestPowerOff)),
            ("guest has stopped the virtual machine due to error: VZErrorDomain 1\n", Some(GoneCause::HypervisorError)),
            (
                "virtual machine's network attachment VZNetworkDevice has been disconnected with error: x\n",
                Some(GoneCause::HypervisorError),
            ),
            ("Stopping VM...\n", Some(GoneCause::HostStop)),
            (
                "creating a snapshot...\nsnapshot created successfully! shutting down the VM...\n",
                Some(GoneCause::HostPause),
            ),
            ("pausing VM to take a snapshot...\nFailed to suspend the VM: no\n", Some(GoneCause::HostPause)),
            ("Requesting guest OS to stop...\nguest has stopped the virtual machine\n", Some(GoneCause::GuestPowerOff)),
            ("guest has stopped the virtual machine\nStopping VM...\n", Some(GoneCause::GuestPowerOff)),
            ("Stopping VM...\nguest has stopped the virtual machine\n", Some(GoneCause::HostStop)),
            ("Requesting guest OS to stop...\n", None),
            ("", None),
        ] {
            assert_eq!(super::cause(out, ""), cause, "{out}");
        }
        let softnet = "RuntimeFailed(why: \"Softnet process terminated prematurely\")";
        assert_eq!(super::cause("", softnet), Some(GoneCause::HypervisorError));
        assert_eq!(super::cause("", "something else"), None);
    }
}
