# packer build -var-file=macos-26.pkrvars.hcl .
release = 26

# Address of the restore image of the newest 26 from Apple (UniversalMac_26…_Restore.ipsw), or the path of a copy.
ipsw = ""

vm_name = "macos-26"

# From https://github.com/Homebrew/brew/releases: the newest version, and the checksum of its .pkg.
homebrew_version = ""
homebrew_sha256  = ""
