//! Disk images in S3: downloads them for imports, uploads exports.

use std::{path::PathBuf, sync::Arc};

use crate::{
    domain::{Code, Error, Result, Template},
    parts::Parts,
    registry::s3::{DownloadedObject, Location, S3, S3Error},
    templates::{
        Catalog,
        layouts::{
            self, ExportDestination, ExportRequest, Exported, ImportRequest, Notice, TemplateLayout, Tools, WrittenFile,
        },
    },
};

/// Suffixes of files that may be beside an image, as on the host's disk.
const BESIDE: [&str; 3] = [".kernel", ".initramfs", ".firmware"];

/// A downloaded object. Its file is deleted when this is dropped.
pub(super) struct ObjectSource {
    pub notices: Vec<Notice>,
    _fetched: DownloadedObject,
}

#[derive(Clone)]
pub(super) struct Objects {
    catalog: Arc<Catalog>,
    s3: S3,
}

impl Objects {
    pub fn new(parts: &Parts) -> Self {
        let Parts { catalog, s3, .. } = parts.clone();
        Self { catalog, s3 }
    }

    /// Downloads the source of an import from S3, and changes the request to the local file. Does nothing for a
    /// source on the host.
    pub async fn fetch_source(&self, request: &mut ImportRequest) -> Result<Vec<ObjectSource>> {
        let ExportDestination::Object { at, .. } = &request.from else { return Ok(Vec::new()) };
        let at = at.clone();
        one_file(request.layout)?;
        let (disk, path) = self.fetch_object(&at, None).await.map_err(failed)?;
        let mut sources = vec![disk];
        request.from = ExportDestination::File(path);
        let new = &mut request.template;
        if !request.extract_kernel && new.kernel.is_none() && new.initramfs.is_none() && new.firmware.is_none() {
            let into = [&mut new.kernel, &mut new.initramfs, &mut new.firmware];
            for (suffix, file) in BESIDE.into_iter().zip(into) {
                let beside = at.beside(suffix);
                let notice = Notice {
                    field: suffix.trim_start_matches('.').to_owned(),
                    detail: format!("is {beside}, found beside the disk"),
                };
                match self.fetch_object(&beside, Some(notice)).await {
                    Ok((source, path)) => {
                        *file = Some(path);
                        sources.push(source);
                    }
                    // S3 also answers "access denied" for a missing object.
                    Err(S3Error::NoObject { .. } | S3Error::Denied { .. }) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        Ok(sources)
    }

    /// `notice` is added if the object exists.
    async fn fetch_object(
        &self,
        at: &Location,
        notice: Option<Notice>,
    ) -> std::result::Result<(ObjectSource, PathBuf), S3Error> {
        let fetched = self.s3.fetch(at, &|_, _| {}).await?;
        tracing::info!(s3.bucket = at.bucket(), s3.key = at.key(), bytes = fetched.size, digest = %fetched.digest, "object fetched");
        let mut notices: Vec<Notice> = notice.into_iter().collect();
        let unverified = fetched.notices.iter().map(|detail| Notice { field: "path".into(), detail: detail.clone() });
        notices.extend(unverified);
        let path = fetched.path();
        Ok((ObjectSource { notices, _fetched: fetched }, path))
    }

    /// Creates the image locally and uploads it. The image itself is uploaded last, so an object under its key is
    /// complete, with all files beside it.
    pub async fn export(
        &self,
        template: Template,
        request: ExportRequest,
        at: &Location,
        overwrite: bool,
    ) -> Result<Exported> {
        const IMAGE: &str = "image";
        one_file(request.layout)?;
        // Checks first, because the conversion is slow.
        self.s3.may_store(at, overwrite).await.map_err(failed)?;
        let work = self.s3.workspace().await.map_err(failed)?;
        let to = ExportDestination::File(work.path().join(IMAGE));
        let made = layouts::export(&self.catalog, &Tools::default(), template, ExportRequest { to, ..request }).await?;
        let mut files = Vec::new();
        // `made.files` begins with the image itself, so it is uploaded last.
        for file in made.files.iter().rev() {
            let name = file.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let to = match name.strip_prefix(IMAGE).unwrap_or_default() {
                "" => at.clone(),
                suffix => at.beside(suffix),
            };
            let stored = self.s3.store(&file.path, &to, overwrite, &|_, _| {}).await.map_err(failed)?;
            tracing::info!(s3.bucket = to.bucket(), s3.key = to.key(), bytes = stored.size, digest = %stored.digest, "object stored");
            files.insert(0, WrittenFile { path: to.to_string().into(), bytes: stored.size });
        }
        Ok(Exported { files, notices: made.notices })
    }
}

fn one_file(layout: TemplateLayout) -> Result<()> {
    if layout.is_image() && layout != TemplateLayout::CloudHypervisor {
        return Ok(());
    }
    let what = format!("is one object, and the layout {} is a directory: qcow2 and raw can be there", layout.as_str());
    Err(Error::new(Code::RequestInvalid, format!("path {what}")).field("/path", what))
}

fn failed(error: S3Error) -> Error {
    let code = match &error {
        error if error.may_pass() => Code::ObjectUnavailable,
        S3Error::Credentials { .. }
        | S3Error::Denied { .. }
        | S3Error::NoBucket { .. }
        | S3Error::NoObject { .. }
        | S3Error::Content { .. }
        | S3Error::Refused { .. } => Code::ObjectRefused,
        S3Error::Exists { .. } => Code::ObjectExists,
        S3Error::Changed { .. } | S3Error::Unavailable { .. } => Code::ObjectUnavailable,
        S3Error::Space { .. } | S3Error::Storage(_) => Code::HostUnavailable,
    };
    Error::new(code, error.to_string()).field("/path", "could not be fetched or stored")
}
