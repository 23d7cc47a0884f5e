//! The roles of the executable: it starts itself again wherever work has to be done under another parent, in another
//! session or with another user's ids. A hidden first word of the command line names the role; each word stands here,
//! once, and is written and read in one place.
//! Refuses to run a role (`main` does) and to understand the words of a caller (`cli` does).
//!
//! An update that would end with the server leaves its caller first:
//!
//! ```text
//! caller's process           __depart                  __arrive                      __outside
//!   binds a socket
//!   starts ----------------> leads a session
//!                            starts -----------------> connects to the socket
//!   (or: systemd-run starts __arrive; or: the helper's unit starts __helper, which goes on as __arrive does)
//!   hands over the command line, folder, environment and standard handles ->
//!                                                      execs ----------------------> runs the command
//!   <- begun, stopping, ended with this exit code ----------------------------------
//! ```
//!
//! Root works for the install of another user by a child with that user's ids:
//!
//! ```text
//! root's half                __as                      __monitored
//!   makes a pair of sockets
//!   starts ----------------> takes on the user's ids
//!                            execs ------------------> runs the command
//!   <- asks for a suspended start, a unit's stop or start, an end of the system -----
//!   answers ---------------------------------------->
//! ```
//!
//! Both go together: `__helper`, run by root's unit, is the command of a monitored child, and hands the monitor on to
//! the process outside (`__monitored SOCKET - __outside LINE ID ...`).
//!
//! A server is started suspended, so that its identity is in the journal before it runs:
//!
//! ```text
//! updater                    __launch
//!   starts ----------------> reads the launch spec from its standard input, prepares everything
//!   <- ready ---------------
//!   writes pid and start time into the journal
//!   releases --------------> becomes the server by exec (the end of its input ends it instead)
//! ```

use std::ffi::{OsStr, OsString};

const EXEC_SERVER: &str = "__launch";
const BECOME_OWNER: &str = "__as";
const MONITORED: &str = "__monitored";
const DEPART: &str = "__depart";
const ARRIVE: &str = "__arrive";
const OUTSIDE: &str = "__outside";

/// The hidden command `__helper UNIT`, which stands behind the options of an ordinary command line.
pub const HELPER: &str = "__helper";

/// The first word of a suspended start, for the command line that says that nobody else is to call it.
pub const LAUNCH: &str = EXEC_SERVER;

/// Stands for a handle that is not there.
const NO_HANDLE: &str = "-";

/// What this process is to do, by the words of its command line behind the program's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A caller's command line, word for word.
    Cli(Vec<OsString>),
    /// `__launch`: becomes the server that the launch spec on its standard input describes.
    ExecServer,
    /// `__as WHO SOCKET BUNDLE ...`: takes on the ids of a user (credentials as JSON) and goes on as `Monitored`.
    BecomeOwner { who: String, given: Given, then: Box<Role> },
    /// `__monitored SOCKET BUNDLE ...`: does `then` as the user whose ids it has, and asks root over the socket.
    Monitored { given: Given, then: Box<Role> },
    /// `__depart NAME`: leads a session of its own and starts `Arrive` in it. NAME is the socket in the working folder.
    Depart { socket: OsString },
    /// `__arrive NAME`: takes over the caller's work over that socket and goes on as `Outside`.
    Arrive { socket: OsString },
    /// `__outside LINE ID ...`: runs a caller's words under this update id and reports to the caller over the line.
    Outside { line: i32, update_id: String, words: Vec<OsString> },
}

/// The handles that root's half left open for its child, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// The socket to root's half.
    pub socket: i32,
    /// The bundle that root opened, because its owner may not read it.
    pub bundle: Option<i32>,
}

impl Role {
    /// The role that these words name. Words that name none, or lack a part of it, are a caller's command line.
    pub fn parse(words: Vec<OsString>) -> Role {
        Role::of(&words).unwrap_or(Role::Cli(words))
    }

    fn of(words: &[OsString]) -> Option<Role> {
        let (first, rest) = words.split_first()?;
        // Nothing else is ever done for root's half, so nothing nests deeper.
        let then = |rest: &[OsString]| Box::new(Role::outside(rest).unwrap_or_else(|| Role::Cli(rest.to_vec())));
        Some(match (first.to_str()?, rest) {
            (EXEC_SERVER, _) => Role::ExecServer,
            (BECOME_OWNER, [who, socket, bundle, rest @ ..]) => {
                let given = Given::parse(socket, bundle)?;
                Role::BecomeOwner { who: who.to_str()?.to_string(), given, then: then(rest) }
            }
            (MONITORED, [socket, bundle, rest @ ..]) => {
                Role::Monitored { given: Given::parse(socket, bundle)?, then: then(rest) }
            }
            (DEPART, [socket, ..]) => Role::Depart { socket: socket.clone() },
            (ARRIVE, [socket, ..]) => Role::Arrive { socket: socket.clone() },
            _ => return Role::outside(words),
        })
    }

    fn outside(words: &[OsString]) -> Option<Role> {
        match words {
            [first, line, id, rest @ ..] if first == OUTSIDE => {
                Some(Role::Outside { line: number(line)?, update_id: id.to_str()?.to_string(), words: rest.to_vec() })
            }
            _ => None,
        }
    }

    /// The words that `parse` reads as this role.
    pub fn words(&self) -> Vec<OsString> {
        let with = |words: &[&str], rest: Vec<OsString>| -> Vec<OsString> {
            words.iter().map(OsString::from).chain(rest).collect()
        };
        match self {
            Role::Cli(words) => words.clone(),
            Role::ExecServer => vec![EXEC_SERVER.into()],
            Role::BecomeOwner { who, given, then } => {
                let [socket, bundle] = given.words();
                with(&[BECOME_OWNER, who, &socket, &bundle], then.words())
            }
            Role::Monitored { given, then } => {
                let [socket, bundle] = given.words();
                with(&[MONITORED, &socket, &bundle], then.words())
            }
            Role::Depart { socket } => vec![DEPART.into(), socket.clone()],
            Role::Arrive { socket } => vec![ARRIVE.into(), socket.clone()],
            Role::Outside { line, update_id, words } => with(&[OUTSIDE, &line.to_string(), update_id], words.clone()),
        }
    }
}

impl Given {
    fn parse(socket: &OsStr, bundle: &OsStr) -> Option<Given> {
        let bundle = if bundle == NO_HANDLE { None } else { Some(number(bundle)?) };
        Some(Given { socket: number(socket)?, bundle })
    }

    fn words(&self) -> [String; 2] {
        [self.socket.to_string(), self.bundle.map_or_else(|| NO_HANDLE.to_string(), |number| number.to_string())]
    }
}

/// The number of a handle beside the three standard ones.
fn number(word: &OsStr) -> Option<i32> {
    word.to_str()?.parse().ok().filter(|number| *number > 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn cli(line: &str) -> Box<Role> {
        Box::new(Role::Cli(words(line)))
    }

    /// Each role beside its command line.
    fn all() -> Vec<(Role, &'static str)> {
        let (socket, update_id) = (OsString::from("escape-7"), "01ABC".to_string());
        let outside = Role::Outside { line: 5, update_id, words: words("apply x.zip --json") };
        let given = Given { socket: 3, bundle: Some(4) };
        vec![
            (*cli("apply x.zip"), "apply x.zip"),
            (*cli("--root /srv __helper web.service"), "--root /srv __helper web.service"),
            (Role::ExecServer, "__launch"),
            (Role::BecomeOwner { who: "{}".into(), given, then: cli("status") }, "__as {} 3 4 status"),
            (Role::Monitored { given, then: cli("status") }, "__monitored 3 4 status"),
            (Role::Depart { socket: socket.clone() }, "__depart escape-7"),
            (Role::Arrive { socket }, "__arrive escape-7"),
            (outside.clone(), "__outside 5 01ABC apply x.zip --json"),
            (
                Role::Monitored { given: Given { socket: 3, bundle: None }, then: Box::new(outside) },
                "__monitored 3 - __outside 5 01ABC apply x.zip --json",
            ),
        ]
    }

    #[test]
    fn each_role_formats_to_what_it_parses() {
        for (role, line) in all() {
            assert_eq!(role.words(), words(line), "{role:?}");
            assert_eq!(Role::parse(words(line)), role, "{line}");
        }
    }

    #[test]
    fn a_role_for_root_holds_the_work_outside_and_no_other() {
        let Role::Monitored { then, .. } = Role::parse(words("__monitored 3 - __monitored 3 - status")) else {
            panic!()
        };
        assert_eq!(then, cli("__monitored 3 - status"));
        let Role::Outside { words: inner, .. } = Role::parse(words("__outside 5 ID __launch")) else { panic!() };
        assert_eq!(inner, words("__launch"));
    }

    #[test]
    fn what_lacks_a_part_is_a_callers_command_line() {
        assert_eq!(Role::parse(Vec::new()), Role::Cli(Vec::new()));
        for line in [
            "__as {} 3",
            "__as {} x - status",
            "__monitored 3",
            "__monitored 1 - status",
            "__monitored 3 x status",
            "__depart",
            "__arrive",
            "__outside 5",
            "__outside -5 ID apply",
            "__other 3 4",
        ] {
            assert_eq!(Role::parse(words(line)), *cli(line), "{line}");
        }
    }
}
