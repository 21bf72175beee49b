//! Files in S3, and in what speaks its protocol: a disk image comes from there, and goes there.
//!
//! ```text
//! s3           who we are there, and where our own notes are
//!   location   s3://bucket/key
//!   download   a whole object, in ranges, verified
//!     verify   what its content is held against
//!   upload     a whole file, in parts, all of it or nothing
//!   error      what S3 says, in words
//! ```
//!
//! Our own notes, in one directory:
//!
//! ```text
//! <dir>/downloads/<hash of the location>/   .lock  object  journal
//! <dir>/uploads/<uuid>.json                 what is being uploaded, locked by who does it
//! <dir>/exports/<uuid>/                     what is made to be uploaded, locked by who does it
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

use super::aws;
use crate::{
    platform::{files, retry::Retry},
    registry::BandwidthLimits,
};

pub use self::{
    download::DownloadedObject,
    error::S3Error,
    location::{Location, LocationError},
    upload::UploadedObject,
};

/// Where buckets are asked for when nobody says a region. It answers with the right one.
const REGION: &str = "us-east-1";

/// How far a transfer is: bytes, of how many.
pub type TransferProgress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

#[derive(Clone, Debug)]
pub struct S3 {
    dir: PathBuf,
    limits: BandwidthLimits,
    retry: Retry,
    /// Bytes of a range, and of a part unless a file needs larger ones.
    piece: u64,
    making: Arc<Mutex<()>>,
}

impl S3 {
    /// `dir` is where unfinished transfers are remembered. Connects to nothing.
    pub fn new(dir: PathBuf, limits: BandwidthLimits) -> S3 {
        S3 { dir, limits, retry: crate::registry::retry::TRANSFERS, piece: 16 << 20, making: Arc::default() }
    }

    /// With other pauses between attempts, and smaller pieces (at least 5 MiB, by S3's own rule).
    pub fn with(self, retry: Retry, piece: u64) -> S3 {
        S3 { retry, piece: piece.max(5 << 20), ..self }
    }
}

/// A directory for a file that is made to be uploaded. It goes when this is dropped.
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
    /// Takes away what processes that are gone have left of theirs.
    pub async fn workspace(&self) -> Result<UploadWorkspace, S3Error> {
        let (all, making) = (self.dir.join("exports"), self.making.clone());
        download::blocking(move || {
            // One that is made now must not be taken for one that was left.
            let _making = making.lock();
            files::ensure_private_dir(&all)?;
            for entry in fs::read_dir(&all)? {
                let left = entry?.path();
                // A directory's lock is its maker's, for as long as that lives.
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

/// A client of one bucket's region.
struct BucketClient {
    client: Client,
    region: String,
    /// An address of the user's own, which has no regions to be sent to.
    custom: bool,
}

impl BucketClient {
    /// Of the environment's region, or of the one that the bucket was said to be in.
    async fn open(region: Option<&str>) -> Result<BucketClient, S3Error> {
        let (shared, _) = aws::load(region, None).await.map_err(S3Error::Credentials)?;
        let region = shared.region().map_or(REGION, |r| r.as_ref()).to_owned();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let custom = set("AWS_ENDPOINT_URL_S3") || shared.endpoint_url().is_some();
        let config = aws_sdk_s3::config::Builder::from(&shared)
            .region(Region::new(region.clone()))
            // Others than Amazon rarely have a host name per bucket.
            .force_path_style(custom)
            // We say ourselves what is to be verified, and not all who speak the protocol know Amazon's newest sums.
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

    /// Whether the bucket is elsewhere, by what S3 answered.
    fn elsewhere<E>(&self, error: &error::Sdk<E>) -> Option<String> {
        let region = error.raw_response()?.headers().get("x-amz-bucket-region")?;
        (!self.custom && region != self.region).then(|| region.to_owned())
    }
}
