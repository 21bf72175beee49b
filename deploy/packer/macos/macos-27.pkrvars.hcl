# packer build -var-file=macos-27.pkrvars.hcl .
release = 27
ipsw    = "https://updates.cdn-apple.com/2026FallFCS/afcfc88e-bbe6-44bf-a5da-07c56eebc06c/UniversalMac_27.0_26A428_Restore.ipsw"
vm_name = "macos-27"

# On a host with macOS 27 and Tart 2.33, Tart makes the first user. On an older host: false.
provisioning = true

# From https://github.com/Homebrew/brew/releases: the newest version, and the checksum of its .pkg.
homebrew_version = ""
homebrew_sha256  = ""
