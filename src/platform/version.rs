//! Which build of Mayfly this is.

use std::sync::LazyLock;

pub const NUMBER: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from: `MAYFLY_COMMIT` at build time, which `make build` sets. Other builds have none,
/// because each new value compiles the whole crate again.
pub const COMMIT: Option<&str> = option_env!("MAYFLY_COMMIT");
pub const PROFILE: &str = if cfg!(debug_assertions) { "debug" } else { "release" };

/// Number and commit: `0.1.0 (2f9a6c01b3d4)`.
pub fn long() -> &'static str {
    static LONG: LazyLock<String> = LazyLock::new(|| format!("{NUMBER} ({})", COMMIT.unwrap_or("unknown commit")));
    &LONG
}

/// Architecture and system: `x86_64-linux`.
pub fn target() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}
