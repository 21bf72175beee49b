//! Why a manifest cannot be used.

use super::form;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("this is not an image manifest ({what}); it begins with {found:?}")]
    NotJson { what: String, found: String },
    #[error("this is {0}; only a virtual machine's image in Tart's format or Mayfly's can be a template")]
    Foreign(String),
    #[error("the image has the disk format {0}, which is no longer supported: push it again with Tart 2.0 or newer")]
    Legacy(&'static str),
    #[error(
        "the image has its disk in layers ({}), which is not supported: push a VM with one flat disk",
        form::TART_OVERLAY
    )]
    Stacked,
    #[error("layer {layer} of the image {what}")]
    Layer { layer: usize, what: String },
    #[error("the image {0}")]
    Image(String),
    #[error(
        "it is a list with {fitting} images for the architecture {wanted}, expected one; pull one by its digest: {there}"
    )]
    Platform { wanted: String, fitting: usize, there: String },
    #[error("it is a list without an image that could be pulled: name the image itself, by its tag or digest")]
    EmptyList,
    #[error("it is a list with more than {most} lists within it: name the image itself, by its tag or digest")]
    Nested { most: usize },
}
