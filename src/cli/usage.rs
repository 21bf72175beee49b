//! What is said about arguments that cannot be parsed: which ones there are, and which command takes an unknown one.
//!
//! The parser knows one command at a time, suggests options that merely share letters with what was given, and puts its
//! suggestion into the usage line.

use std::ffi::OsString;

use clap::{
    Arg, Command, Error,
    builder::{StyledStr, Styles},
    error::{ContextKind, ContextValue, ErrorKind},
};

/// An unknown word that is in so many commands is not explained by listing them.
const MOST_COMMANDS: usize = 4;

/// The parser's error with the usage of the command that was meant, and with suggestions that lead somewhere.
pub(super) fn explain(mut error: Error, mut root: Command, args: &[OsString]) -> Error {
    if !error.use_stderr() {
        return error;
    }
    root.build();
    let path = path(&root, args);
    let Some(command) = find(&mut root, &path) else { return error };
    let usage = command.render_usage();
    let options: Vec<String> = command.get_arguments().filter_map(long).collect();
    let passes_on = command.get_arguments().any(|arg| arg.is_trailing_var_arg_set());
    if error.get(ContextKind::Usage).is_some() {
        error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    }
    match (error.kind(), text(&error, ContextKind::InvalidArg), text(&error, ContextKind::InvalidSubcommand)) {
        (ErrorKind::UnknownArgument, Some(given), _) => {
            error.remove(ContextKind::SuggestedArg);
            let given = given.split('=').next().unwrap_or_default().to_owned();
            if let Some(similar) = similar(&given, &options) {
                error.insert(ContextKind::SuggestedArg, ContextValue::String(similar));
                error.remove(ContextKind::Suggested);
            } else if let Some(tip) =
                elsewhere(&root, &given, |command| command.get_arguments().filter_map(long).collect())
            {
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
            } else if !passes_on {
                // Passing it as a value makes sense only for a command line.
                error.remove(ContextKind::Suggested);
            }
        }
        (ErrorKind::InvalidSubcommand, _, Some(given)) => {
            let names = |command: &Command| command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
            if let Some(tip) = elsewhere(&root, &given, names) {
                error.remove(ContextKind::SuggestedSubcommand);
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
            }
        }
        _ => {}
    }
    error
}

fn text(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn long(arg: &Arg) -> Option<String> {
    arg.get_long().filter(|_| !arg.is_hide_set()).map(|long| format!("--{long}"))
}

/// The subcommands that the arguments name.
fn path(root: &Command, args: &[OsString]) -> Vec<String> {
    let (mut command, mut path) = (root, Vec::new());
    let mut args = args.iter().skip(1).filter_map(|arg| arg.to_str());
    while let Some(arg) = args.next() {
        if let Some(sub) = command.find_subcommand(arg) {
            path.push(sub.get_name().to_owned());
            command = sub;
        } else if arg.starts_with('-') {
            // Its value is not a subcommand.
            let option = command.get_arguments().find(|option| long(option).as_deref() == Some(arg));
            if option.is_some_and(|option| option.get_action().takes_values()) {
                args.next();
            }
        } else {
            break;
        }
    }
    path
}

fn find<'a>(root: &'a mut Command, path: &[String]) -> Option<&'a mut Command> {
    path.iter().try_fold(root, |command, name| command.find_subcommand_mut(name))
}

/// The option that a slip of the fingers made this of.
fn similar(given: &str, options: &[String]) -> Option<String> {
    let name = given.trim_start_matches('-');
    let distance = |option: &String| strsim::osa_distance(name, option.trim_start_matches('-'));
    let closest = options.iter().min_by_key(|option| distance(option))?;
    let begins = name.len() >= 3 && closest.trim_start_matches('-').starts_with(name);
    (begins || distance(closest) <= (name.len() / 4).max(1)).then(|| closest.clone())
}

/// The commands that have exactly this.
fn elsewhere(root: &Command, given: &str, names: impl Fn(&Command) -> Vec<String>) -> Option<StyledStr> {
    let mut found = Vec::new();
    let is_option = given.starts_with('-');
    visit(root, &mut |command, path| {
        if names(command).iter().any(|name| name == given) {
            found.push(if is_option { path.join(" ") } else { format!("{} {given}", path.join(" ")) });
        }
    });
    if found.is_empty() || found.len() > MOST_COMMANDS {
        return None;
    }
    let styles = Styles::styled();
    let valid = styles.get_valid();
    let commands: Vec<String> = found.iter().map(|command| format!("'{valid}{command}{valid:#}'")).collect();
    let tip = match is_option {
        true => format!("'{valid}{given}{valid:#}' is an option of {}", commands.join(", ")),
        false => format!("there is {}", commands.join(", ")),
    };
    Some(StyledStr::from(tip))
}

fn visit(command: &Command, work: &mut impl FnMut(&Command, &[&str])) {
    fn below<'a>(command: &'a Command, path: &mut Vec<&'a str>, work: &mut impl FnMut(&Command, &[&str])) {
        path.push(command.get_name());
        work(command, path);
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            below(sub, path, work);
        }
        path.pop();
    }
    below(command, &mut Vec::new(), work);
}
