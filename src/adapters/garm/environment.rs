//! The variables in which GARM says what to do.

use std::{ffi::OsString, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{COMMAND_VARIABLE, failure::GarmFailure};

#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString, strum::Display)]
pub(super) enum GarmCommand {
    CreateInstance,
    DeleteInstance,
    GetInstance,
    ListInstances,
    StartInstance,
    StopInstance,
    RemoveAllInstances,
    GetVersion,
    GetSupportedInterfaceVersions,
    ValidatePoolInfo,
    #[strum(serialize = "GetConfigJSONSchema")]
    GetConfigJsonSchema,
    #[strum(serialize = "GetExtraSpecsJSONSchema")]
    GetExtraSpecsJsonSchema,
}

impl GarmCommand {
    /// Whether the first version of the interface has it.
    fn is_in_the_first_version(self) -> bool {
        !matches!(
            self,
            GarmCommand::GetSupportedInterfaceVersions
                | GarmCommand::ValidatePoolInfo
                | GarmCommand::GetConfigJsonSchema
                | GarmCommand::GetExtraSpecsJsonSchema
        )
    }
}

const VERSIONS: [&str; 2] = ["v0.1.0", "v0.1.1"];

pub(super) fn supported_versions() -> String {
    json!(VERSIONS).to_string()
}

#[derive(Debug)]
pub(super) struct GarmEnvironment {
    pub command: GarmCommand,
    pub config_file: Option<PathBuf>,
    controller: String,
    pool: String,
    instance: String,
    /// Base64 of JSON, and at a creation a secret: it holds the instance's token.
    extra_specs: String,
}

impl GarmEnvironment {
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, GarmFailure> {
        let text = |name: &str| -> Result<String, GarmFailure> {
            let value = variable(name).unwrap_or_default().into_string();
            value.map_err(|_| GarmFailure::Failed(format!("{name}: the value is not UTF-8")))
        };
        let command = text(COMMAND_VARIABLE)?;
        if command.is_empty() {
            return Err(GarmFailure::Failed(format!(
                "this is the external provider of GARM, and GARM starts it: {COMMAND_VARIABLE} is not set; name this program \
                 as `provider_executable` in GARM's configuration (docs/garm.md)"
            )));
        }
        let version = text("GARM_INTERFACE_VERSION")?;
        let version = if version.is_empty() { VERSIONS[0] } else { &version };
        if !VERSIONS.contains(&version) {
            return Err(GarmFailure::Failed(format!(
                "GARM_INTERFACE_VERSION: expected one of {}, found {version:.40?}; set `interface_version` in GARM's \
                 configuration of this provider",
                VERSIONS.join(", ")
            )));
        }
        let known = command.parse::<GarmCommand>().ok();
        let command =
            known.filter(|known| version != VERSIONS[0] || known.is_in_the_first_version()).ok_or_else(|| {
                GarmFailure::Failed(format!(
                    "{COMMAND_VARIABLE}: the interface {version} has no command {command:.60?}"
                ))
            })?;
        let config_file = variable("GARM_PROVIDER_CONFIG_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Self {
            command,
            config_file,
            controller: text("GARM_CONTROLLER_ID")?,
            pool: text("GARM_POOL_ID")?,
            instance: text("GARM_INSTANCE_ID")?,
            extra_specs: text("GARM_POOL_EXTRASPECS")?,
        })
    }

    /// The id of the GARM installation. Without it, no vm can be told from those of others.
    pub fn controller(&self) -> Result<&str, GarmFailure> {
        required("GARM_CONTROLLER_ID", &self.controller)
    }

    /// The UUID of a pool, or an identifier of a scale set that contains its name.
    pub fn pool(&self) -> Result<&str, GarmFailure> {
        required("GARM_POOL_ID", &self.pool)
    }

    pub fn pool_if_any(&self) -> Option<&str> {
        Some(self.pool.as_str()).filter(|pool| !pool.is_empty())
    }

    /// What this provider called the instance, or the instance's name.
    pub fn instance(&self) -> Result<&str, GarmFailure> {
        required("GARM_INSTANCE_ID", &self.instance)
    }

    /// `null`: there are none.
    pub fn extra_specs(&self) -> Result<Value, GarmFailure> {
        if self.extra_specs.is_empty() {
            return Ok(Value::Null);
        }
        // Not shown, because it may hold a token.
        let unusable = |what: &str| GarmFailure::Failed(format!("GARM_POOL_EXTRASPECS: {what}"));
        let json = STANDARD.decode(&self.extra_specs).map_err(|_| unusable("the value is not base64"))?;
        serde_json::from_slice(&json).map_err(|_| unusable("the value is not JSON"))
    }
}

fn required<'a>(name: &str, value: &'a str) -> Result<&'a str, GarmFailure> {
    if value.is_empty() { Err(GarmFailure::Failed(format!("{name} is not set"))) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<GarmEnvironment, GarmFailure> {
        GarmEnvironment::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn commands_belong_to_versions() {
        let read = |command: &str, version: &str| {
            read(&[("GARM_COMMAND", command), ("GARM_INTERFACE_VERSION", version)]).map(|read| read.command)
        };
        assert_eq!(read("GetConfigJSONSchema", "v0.1.1").unwrap(), GarmCommand::GetConfigJsonSchema);
        assert_eq!(read("CreateInstance", "").unwrap(), GarmCommand::CreateInstance);
        for (command, version) in [
            ("GetConfigJSONSchema", "v0.1.0"),
            ("GetSupportedInterfaceVersions", ""),
            ("Start", "v0.1.1"),
            ("createinstance", "v0.1.0"),
            ("CreateInstance", "v0.2.0"),
        ] {
            assert_eq!(read(command, version).unwrap_err().exit_code(), 1, "{command} {version}");
        }
    }

    #[test]
    fn extra_specs_are_base64_and_never_shown() {
        let specs = |text: &str| {
            read(&[
                ("GARM_COMMAND", "ValidatePoolInfo"),
                ("GARM_INTERFACE_VERSION", "v0.1.1"),
                ("GARM_POOL_EXTRASPECS", text),
            ])
            .unwrap()
            .extra_specs()
        };
        assert_eq!(specs("").unwrap(), Value::Null);
        assert_eq!(specs("bnVsbA==").unwrap(), Value::Null);
        assert_eq!(specs("eyJjcHVzIjoyfQ==").unwrap(), json!({"cpus": 2}));
        for bad in ["hush hush", "aHVzaCBodXNo"] {
            assert!(!specs(bad).unwrap_err().to_string().contains("hush"));
        }
    }
}
