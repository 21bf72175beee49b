//! Downloads disk images from S3, and uploads them, also with compatible services.
//!
//! ```text
//! s3           credentials, and the working directory
//!   location   s3://bucket/key
//!   download   downloads an object in ranges, and verifies it
//!     verify   the digests and checksums of an object's content
//!   upload     uploads a file in parts, completely or not at all
//!   error      errors of S3
//! ```
//!
//! The working directory:
//!
//! ```text
//! <dir>/downloads/<hash of the location>/   .lock  object  journal
//! <dir>/uploads/<uuid>.json                 an unfinished upload, locked by its process
//! <dir>/exports/<uuid>/                     files to be uploaded, locked by their process
//! ```

mod download;
mod error;
mod location;
mod upload;
mod verify;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_config::Region;
use aws_sdk_s3::{
    Client,
    config::{RequestChecksumCalculation, ResponseChecksumValidation},
};
use parking_lot::Mutex;

use super::aws::{self, AwsFailure};
use crate::{
    platform::{
        files::{self, SpaceGuard},
        retry::Retry,
    },
    registry::BandwidthLimits,
};

pub use self::{
    download::DownloadedObject,
    error::S3Error,
    location::{Location, LocationError},
    upload::UploadedObject,
};

/// The default region for queries about buckets. It answers with the right one.
const REGION: &str = "us-east-1";

/// Progress of a transfer: bytes done, and in total.
pub type TransferProgress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

#[derive(Clone, Debug)]
pub struct S3 {
    dir: PathBuf,
    limits: BandwidthLimits,
    retry: Retry,
    /// Bytes of a range, and of a part unless a file needs larger ones.
    piece: u64,
    making: Arc<Mutex<()>>,
    space: SpaceGuard,
}

impl S3 {
    /// `dir` is for unfinished transfers. Connects to nothing.
    pub fn new(dir: PathBuf, limits: BandwidthLimits) -> S3 {
        S3 {
            space: SpaceGuard::new(dir.clone(), 0),
            dir,
            limits,
            retry: crate::registry::retry::TRANSFERS,
            piece: 16 << 20,
            making: Arc::default(),
        }
    }

    /// Downloads ask this guard.
    pub fn with_space(self, space: SpaceGuard) -> S3 {
        S3 { space, ..self }
    }

    /// With other pauses between attempts, and smaller pieces (at least 5 MiB, the minimum of S3).
    pub fn with(self, retry: Retry, piece: u64) -> S3 {
        S3 { retry, piece: piece.max(5 << 20), ..self }
    }
}

/// A directory for files to be uploaded. It is removed when this is dropped.
#[derive(Debug)]
pub struct UploadWorkspace {
    dir: PathBuf,
    _lock: File,
}

impl UploadWorkspace {
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for UploadWorkspace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl S3 {
    /// Removes directories of processes that have ended.
    pub async fn workspace(&self) -> Result<UploadWorkspace, S3Error> {
        let (all, making) = (self.dir.join("exports"), self.making.clone());
        download::blocking(move || {
            // A directory that is being created must not be taken for an abandoned one.
            let _making = making.lock();
            files::ensure_private_dir(&all)?;
            for entry in fs::read_dir(&all)? {
                let left = entry?.path();
                // A directory is locked by its process while that runs.
                if File::open(&left).is_ok_and(|dir| dir.try_lock().is_ok()) {
                    let _ = fs::remove_dir_all(&left);
                }
            }
            let dir = all.join(uuid::Uuid::new_v4().to_string());
            files::create_private_dir(&dir)?;
            let lock = File::open(&dir)?;
            lock.try_lock().map_err(io::Error::other)?;
            Ok(UploadWorkspace { dir, _lock: lock })
        })
        .await
    }
}

/// A client for the region of one bucket.
struct BucketClient {
    client: Client,
    region: String,
    /// A custom endpoint, which has no regions.
    custom: bool,
}

impl BucketClient {
    /// In the environment's region, or in the bucket's known one.
    async fn open(region: Option<&str>) -> Result<BucketClient, S3Error> {
        let (shared, _) = aws::load(region, None)
            .await
            .map_err(|AwsFailure { what, temporary }| S3Error::Credentials { what, temporary })?;
        let region = shared.region().map_or(REGION, |r| r.as_ref()).to_owned();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let custom = set("AWS_ENDPOINT_URL_S3") || shared.endpoint_url().is_some();
        let config = aws_sdk_s3::config::Builder::from(&shared)
            .region(Region::new(region.clone()))
            // Other services than Amazon's rarely have a host name per bucket.
            .force_path_style(custom)
            // The checksums are chosen here, because not all compatible services know Amazon's newest ones.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .timeout_config(
                aws_sdk_s3::config::timeout::TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(5))
                    .read_timeout(Duration::from_secs(60))
                    .build(),
            )
            .build();
        Ok(BucketClient { client: Client::from_conf(config), region, custom })
    }

    /// The region of the bucket, if S3's answer names another one.
    fn elsewhere<E>(&self, error: &error::Sdk<E>) -> Option<String> {
        let region = error.raw_response()?.headers().get("x-amz-bucket-region")?;
        (!self.custom && region != self.region).then(|| region.to_owned())
    }
}
