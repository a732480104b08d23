//! The commands of the documentation: README.md and docs/*.md.
//!
//! They stand in fenced blocks marked `console`. A line that begins with a prompt is a command, everything else is what
//! it printed. A prompt is the host, if there are several, and `$` for anybody or `#` for root:
//!
//! ```text
//! alice$ agentnet status
//! # nft list ruleset
//! ```

use std::fs;
use std::path::{Path, PathBuf};

/// One document.
pub(crate) struct Document {
    /// Its path from the root of the repository.
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: String,
}

/// A command line as a reader types it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// Where it stands, `docs/guide.md:12`.
    pub(crate) place: String,
    /// The host in the prompt; empty without one.
    pub(crate) host: String,
    /// Typed by root.
    pub(crate) root: bool,
    /// What is typed.
    pub(crate) text: String,
}

/// A program that cannot be run in the lab.
pub(crate) struct Elsewhere {
    /// How its name begins.
    pub(crate) program: &'static str,
    /// Why not.
    pub(crate) why: &'static str,
    /// What is looked at instead, given the words of the command.
    pub(crate) check: fn(&[String]) -> Result<(), String>,
}

/// All of them.
pub(crate) const ELSEWHERE: &[Elsewhere] = &[
    Elsewhere { program: "git", why: "there is no network in the lab", check: |_| Ok(()) },
    Elsewhere { program: "scripts/", why: "builds, and runs for minutes", check: check_script },
    Elsewhere { program: "apt", why: "scripts/package-test does it, in a Debian of its own", check: check_package },
    Elsewhere { program: "tar", why: "the archive is what scripts/package makes", check: check_archive },
    Elsewhere {
        program: "brew",
        why: "there is no Homebrew in the lab",
        check: |_| is_there("packaging/homebrew/agentnet.rb"),
    },
    Elsewhere { program: "podman", why: "there is no container engine in the lab", check: check_container },
    Elsewhere { program: "systemctl", why: "no systemd runs in the lab", check: check_unit },
    Elsewhere { program: "journalctl", why: "no systemd runs in the lab", check: check_unit },
    Elsewhere { program: "modprobe", why: "the kernel's modules are the machine's", check: |_| Ok(()) },
];

/// The documents, the readme first.
pub(crate) fn documents() -> Vec<Document> {
    let mut names: Vec<String> = fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();
    names.insert(0, "README.md".to_owned());
    let read = |name: String| Document { text: fs::read_to_string(root().join(&name)).unwrap(), name };
    names.into_iter().map(read).collect()
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Document {
    /// The fenced blocks: number of the first line inside, language, lines.
    pub(crate) fn blocks(&self) -> Vec<(usize, &str, Vec<&str>)> {
        let mut blocks = Vec::new();
        let mut open: Option<(usize, &str, Vec<&str>)> = None;
        for (number, line) in self.text.lines().enumerate() {
            match (line.strip_prefix("```"), &mut open) {
                (Some(language), None) => open = Some((number + 2, language, Vec::new())),
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some((_, _, lines))) => lines.push(line),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: the last fenced block does not end", self.name);
        blocks
    }

    /// Every command, in its order.
    pub(crate) fn commands(&self) -> Vec<Command> {
        let consoles = self.blocks().into_iter().filter(|(_, language, _)| *language == "console");
        consoles.flat_map(|(first, _, lines)| self.commands_of(first, &lines)).collect()
    }

    fn commands_of(&self, first: usize, lines: &[&str]) -> Vec<Command> {
        let mut commands: Vec<Command> = Vec::new();
        let mut goes_on = false;
        for (number, line) in lines.iter().enumerate() {
            let (typed, continued) = line.strip_suffix('\\').map_or((*line, false), |typed| (typed, true));
            match (goes_on, commands.last_mut(), prompt(typed)) {
                (true, Some(command), _) => command.text.extend([" ", typed.trim()]),
                (_, _, Some((host, root, text))) => commands.push(Command {
                    place: format!("{}:{}", self.name, first + number),
                    host: host.to_owned(),
                    root,
                    text: text.to_owned(),
                }),
                _ => continue,
            }
            goes_on = continued;
        }
        commands
    }

    /// Everything but the fenced blocks, with blanks for line ends.
    pub(crate) fn prose(&self) -> String {
        let mut inside = false;
        let mut prose = String::new();
        for line in self.text.lines() {
            if line.starts_with("```") {
                inside = !inside;
            } else if !inside {
                prose.push_str(line);
                prose.push(' ');
            }
        }
        prose
    }
}

impl Command {
    /// Whether any of it cannot be run in the lab.
    pub(crate) fn elsewhere(&self) -> Option<(&'static Elsewhere, Vec<String>)> {
        simple_commands(&self.text).into_iter().find_map(|words| {
            let entry = ELSEWHERE.iter().find(|entry| is_program(&words, entry.program))?;
            Some((entry, words))
        })
    }
}

fn is_program(words: &[String], program: &str) -> bool {
    words.first().is_some_and(|first| match program.ends_with('/') {
        true => first.starts_with(program),
        false => first == program,
    })
}

/// Host, whether root types, and what follows; `None` for what was printed.
pub(crate) fn prompt(line: &str) -> Option<(&str, bool, &str)> {
    let end = line.find(|character: char| !character.is_ascii_lowercase() && !character.is_ascii_digit())?;
    let (host, rest) = line.split_at(end);
    let root = rest.starts_with("# ");
    (root || rest.starts_with("$ ")).then(|| (host, root, rest[2..].trim()))
}

/// The words of each simple command of a line of shell, without `sudo`, assignments and redirections. Quotes are taken
/// off; what is substituted stays as it is written.
pub(crate) fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands: Vec<Vec<String>> = Vec::new();
    for words in words(line).split(|word| matches!(word.as_deref(), Some("|" | "||" | "&&" | ";" | "&"))) {
        let mut rest = words.iter().flatten().cloned().peekable();
        while rest.next_if(|word| word == "sudo" || is_assignment(word)).is_some() {}
        let mut command = Vec::new();
        while let Some(word) = rest.next() {
            if matches!(word.as_str(), ">" | ">>" | "<") {
                rest.next();
            } else {
                command.push(word);
            }
        }
        if !command.is_empty() {
            commands.push(command);
        }
    }
    commands
}

fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.chars().all(|character| character.is_ascii_uppercase() || character == '_')
}

/// Words and operators.
fn words(line: &str) -> Vec<Option<String>> {
    let mut words: Vec<Option<String>> = Vec::new();
    let mut word = String::new();
    let (mut quote, mut substituted, mut begun) = (None, 0usize, false);
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), _) if character == open && substituted == 0 => quote = None,
            (None, '\'' | '"') if substituted == 0 => (quote, begun) = (Some(character), true),
            (_, '$') if characters.peek() == Some(&'(') => {
                substituted += 1;
                word.push(character);
            }
            (_, ')') if substituted > 0 => {
                substituted -= 1;
                word.push(character);
            }
            (None, _) if substituted == 0 && (character.is_whitespace() || "|&;<>".contains(character)) => {
                if begun || !word.is_empty() {
                    words.push(Some(std::mem::take(&mut word)));
                }
                begun = false;
                if !character.is_whitespace() {
                    let doubled = characters.next_if_eq(&character).is_some();
                    words.push(Some(character.to_string().repeat(1 + usize::from(doubled))));
                }
            }
            _ => word.push(character),
        }
    }
    if begun || !word.is_empty() {
        words.push(Some(word));
    }
    words
}

fn is_there(path: &str) -> Result<(), String> {
    if root().join(path).exists() { Ok(()) } else { Err(format!("there is no {path}")) }
}

/// The script is there, can be run, and knows the words it is given.
fn check_script(words: &[String]) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let path = root().join(&words[0]);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", words[0]))?;
    if fs::metadata(&path).map_err(|error| error.to_string())?.permissions().mode() & 0o111 == 0 {
        return Err(format!("{} cannot be run", words[0]));
    }
    let unknown = words[1..].iter().find(|word| !Path::new(word).is_absolute() && !text.contains(word.as_str()));
    unknown.map_or(Ok(()), |word| Err(format!("{} knows no {word:?}", words[0])))
}

/// The package has this name and version.
fn check_package(words: &[String]) -> Result<(), String> {
    let package = concat!("./agentnet_", env!("CARGO_PKG_VERSION"), "_amd64.deb");
    let known = ["install", "remove", "purge", "agentnet", package];
    let unknown = words[1..].iter().find(|word| !known.contains(&word.as_str()));
    unknown.map_or(Ok(()), |word| Err(format!("apt is not tried with {word:?}")))
}

fn check_archive(words: &[String]) -> Result<(), String> {
    let archive = concat!("agentnet-", env!("CARGO_PKG_VERSION"), "-x86_64-linux.tar.gz");
    if words.iter().any(|word| word == archive) { Ok(()) } else { Err(format!("the archive is called {archive}")) }
}

/// The recipe has the stage that is built; what runs in a container is looked at by `tests/docs.rs`.
fn check_container(words: &[String]) -> Result<(), String> {
    let recipe = "packaging/container/Containerfile";
    let text = fs::read_to_string(root().join(recipe)).map_err(|error| error.to_string())?;
    let after = |flag: &str| words.iter().skip_while(|word| *word != flag).nth(1);
    if let Some(stage) = after("--target").filter(|stage| !text.contains(&format!(" AS {stage}\n"))) {
        return Err(format!("{recipe} has no stage {stage}"));
    }
    after("--file").map_or(Ok(()), |file| is_there(file))
}

/// The unit that is named is shipped.
fn check_unit(words: &[String]) -> Result<(), String> {
    let named = words[1..].iter().filter_map(|word| {
        let unit = word.strip_prefix("--unit=").unwrap_or(word);
        unit.starts_with("agentnet").then_some(unit.trim_end_matches(".service"))
    });
    let units: Vec<&str> = named.collect();
    let missing = units.iter().find(|unit| is_there(&format!("packaging/systemd/{unit}.service")).is_err());
    match missing {
        _ if units.is_empty() => Err("no unit of agentnet is named".to_owned()),
        None => Ok(()),
        Some(unit) => Err(format!("there is no unit {unit}")),
    }
}
