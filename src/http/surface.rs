//! The listeners of the service.

/// The listener that received a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    Admin,
    /// The admin API on the socket in the data directory, which only the service's own user can open.
    Local,
    Guest,
}
