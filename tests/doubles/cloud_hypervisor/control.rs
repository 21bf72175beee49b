//! What a test orders, in `double.json` beside the program (beside the link by which it was called). Read at the start, and at each
//! request.

use std::{collections::BTreeMap, fs::File, io::Write as _, path::PathBuf};

use serde::Deserialize;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    version: Option<String>,
    /// There is no KVM.
    pub no_hypervisor: bool,
    /// Requests that are answered like this, and not carried out: by name, as in `vm.boot`.
    pub answers: BTreeMap<String, Answer>,
    /// Requests that are neither carried out nor answered. They are noted in `double.unanswered` beside the program.
    pub hangs: Vec<String>,
    /// The same for those that are carried out.
    pub silent: Vec<String>,
    /// Guests are not run: they do nothing, for ever.
    pub inert: bool,
    #[serde(skip)]
    file: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Control {
    pub fn read() -> Self {
        let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
        Self { file: program.with_file_name("double.json"), ..Self::default() }.again()
    }

    /// As it is now.
    pub fn again(&self) -> Self {
        let file = self.file.clone();
        match std::fs::read(&file) {
            Ok(bytes) => match serde_json::from_slice::<Control>(&bytes) {
                Ok(control) => Control { file, ..control },
                // A mistake of the test.
                Err(error) => panic!("{}: {error}", file.display()),
            },
            Err(_) => Control { file, ..Control::default() },
        }
    }

    pub fn note_unanswered(&self, request: &str) {
        let file = File::options().append(true).create(true).open(self.file.with_file_name("double.unanswered"));
        // A mistake of the test, which waits for this.
        file.and_then(|mut file| writeln!(file, "{request}")).unwrap_or_else(|error| panic!("{request}: {error}"));
    }

    pub fn version(&self) -> &str {
        self.version.as_deref().unwrap_or("v54.0.0")
    }
}
