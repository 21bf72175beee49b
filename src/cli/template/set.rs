//! `mayfly template set`

use clap::Args;
use serde_json::{Map, Value};

use super::{
    super::{
        client::ApiClient, failure::CommandFailure, output, responses::TemplateResponse, text::NETWORK_MODES,
        vm::budget,
    },
    ready::Ready,
};
use crate::domain::BudgetsPatch;

/// Settings other than budgets.
const SETTINGS: [&str; 4] = ["cpus", "memory_mib", "network", "ready"];

#[derive(Args)]
pub(in crate::cli) struct SetTemplate {
    /// Name or digest
    name: String,
    /// Default number of cores of vms
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// Default memory of vms, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..))]
    memory_mib: Option<u32>,
    /// What guests may reach: the guest API only, the internet, or everything that the host reaches
    #[arg(long, value_name = "MODE", value_parser = NETWORK_MODES)]
    network: Option<String>,
    #[command(flatten)]
    ready: Ready,
    /// Budget of the template, such as lifetime_seconds=2h; may be repeated
    #[arg(long = "budget", value_name = "NAME=VALUE", value_parser = budget)]
    budgets: Vec<(String, u32)>,
    /// Setting that the template does not set itself any more: cpus, memory_mib, network, ready or a budget; may be repeated
    #[arg(long, value_name = "NAME", value_parser = setting)]
    unset: Vec<String>,
}

fn setting(name: &str) -> Result<String, String> {
    if SETTINGS.contains(&name) || BudgetsPatch::NAMES.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(format!("expected one of {}, {}", SETTINGS.join(", "), BudgetsPatch::NAMES.join(", ")))
}

impl SetTemplate {
    /// In the API's form: null removes a setting.
    fn body(self) -> Result<Value, CommandFailure> {
        let (mut body, mut budgets) = (Map::new(), Map::new());
        for name in self.unset {
            let to = if SETTINGS.contains(&name.as_str()) { &mut body } else { &mut budgets };
            to.insert(name, Value::Null);
        }
        let mut twice = None;
        let mut put = |to: &mut Map<String, Value>, name: &str, value: Value| {
            if to.insert(name.to_owned(), value).is_some_and(|known| known.is_null()) {
                twice = Some(name.to_owned());
            }
        };
        for (name, value) in [
            ("cpus", self.cpus.map(Value::from)),
            ("memory_mib", self.memory_mib.map(Value::from)),
            ("network", self.network.map(Value::from)),
            ("ready", self.ready.value()),
        ] {
            if let Some(value) = value {
                put(&mut body, name, value);
            }
        }
        for (name, value) in self.budgets {
            put(&mut budgets, &name, value.into());
        }
        if let Some(name) = twice {
            return Err(CommandFailure::Usage(format!("--unset: {name} is also set; give one of the two")));
        }
        if !budgets.is_empty() {
            body.insert("budgets".to_owned(), budgets.into());
        }
        if body.is_empty() {
            return Err(CommandFailure::Usage("nothing to change: give a setting, or --unset".to_owned()));
        }
        Ok(body.into())
    }
}

pub(super) async fn run(args: SetTemplate, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let name = args.name.clone();
    let value = client.patch(&["templates", &name], &args.body()?).await?;
    if json {
        return output::json(&value);
    }
    let t: TemplateResponse = client.view(&value)?;
    output::line(&format!("{}  {}", t.name, t.digest))
}
