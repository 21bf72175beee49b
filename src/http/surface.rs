//! The two listeners of the service.

/// The listener that received a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    Admin,
    Guest,
}
