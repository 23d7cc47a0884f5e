//! Every code of an error or a warning. They are a part of the contract: programs elsewhere match them.

use super::Class;
use serde::{Serialize, Serializer};
use std::fmt;

/// What a code tells of itself.
struct Definition {
    /// Its word in JSON.
    word: &'static str,
    /// The classes with which a run can end that has this code; none: it is only a warning's.
    ends: &'static [Class],
    /// It is a warning's, too.
    warns: bool,
    /// A bundle that ended so failed by its own fault.
    is_bundles_fault: bool,
    meaning: &'static str,
}

macro_rules! codes {
    ($($name:ident $word:literal [$($class:expr),*] $warns:literal $fault:literal $meaning:literal)*) => {
        /// The stable code of an error or a warning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $name,)*
        }

        impl Code {
            /// All of them, by their words.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            fn definition(self) -> Definition {
                match self {
                    $(Code::$name => Definition {
                        word: $word,
                        ends: &[$($class),*],
                        warns: $warns,
                        is_bundles_fault: $fault,
                        meaning: $meaning,
                    },)*
                }
            }
        }
    };
}

codes! {
    BackupDamaged "backup-damaged" [Class::Refused] false false "The backup lacks a file, or one of its files is not what its record says."
    BackupLost "backup-lost" [Class::NeedsOperator] false false "The backup from which data and program are to be put back is gone or damaged."
    BadChecksum "bad-checksum" [Class::Refused] false false "The bundle's SHA-256 is not the one that was demanded."
    BadFile "bad-file" [Class::Failed] false false "A file is not what was staged. The update is rolled back."
    BadHealthUrl "bad-health-url" [Class::Usage] false false "The address of the health check is neither a path nor a URL of this machine."
    BadHook "bad-hook" [Class::Usage] false false "A hook in the settings cannot be used as it is written."
    BadJson "bad-json" [Class::Failed, Class::Refused] false false "A settings file that is to be merged is no JSON: the live one (exit 1), or the bundle's (exit 6)."
    BadLink "bad-link" [Class::Refused] false false "A link of the bundle leads out of the install, or nowhere."
    BadManifest "bad-manifest" [Class::Refused] false false "The bundle's manifest cannot be used."
    BadMethod "bad-method" [Class::Refused] false false "An entry of the bundle is packed in a way that is not supported."
    BadName "bad-name" [Class::Refused] false false "The name of an entry could lead out of the install, or cannot be kept."
    BadPath "bad-path" [Class::Usage] false false "A path of the command line leads out of the install."
    BadPattern "bad-pattern" [Class::Usage] false false "A pattern of the settings is no gitignore pattern."
    BadPort "bad-port" [Class::Usage] false false "A port is no number from 1 to 65535."
    BadReceipt "bad-receipt" [Class::Failed] false false "The receipt of the installed version cannot be read."
    BadSettings "bad-settings" [Class::Usage] true false "The settings cannot be read, or hold a value that cannot be used."
    BadUrl "bad-url" [Class::Usage] false false "The address of a bundle makes no sense."
    BadWrite "bad-write" [Class::Failed] false false "What was written to staging is not what was to be written."
    BadZip "bad-zip" [Class::Refused] false false "The bundle is no whole zip file, or contradicts itself."
    BeforeReceipt "before-receipt" [] true false "Nobody knows what the version before shipped, so files that the bundle lacks stay."
    BootUnits "boot-units" [Class::Failed] false false "The units that mend an install at boot cannot be installed or removed."
    BundleChanged "bundle-changed" [Class::Refused] false false "The bundle changed while it was read."
    CannotCarry "cannot-carry" [Class::Failed] false false "The settings of a file cannot be carried over to its new version."
    CannotOwn "cannot-own" [Class::Failed] false false "A new file cannot get the owner or group of the install."
    CannotRestore "cannot-restore" [Class::Failed] false false "Something of the backup cannot be put back here."
    CannotSave "cannot-save" [Class::Failed] false false "Data of the users cannot be read, so it cannot be saved."
    CannotSignal "cannot-signal" [Class::Failed] false false "The server belongs to a user whose processes may not be ended from here."
    CannotStart "cannot-start" [Class::Failed] false true "The program that is to be started cannot be started."
    ChangedHere "changed-here" [] true false "A shipped file was changed here, and stays."
    CodeBehindLink "code-behind-link" [Class::Failed] false false "A program file lies behind a linked folder, through which nothing is written."
    CriticalMissing "critical-missing" [Class::Failed] false true "A file that the settings call critical is missing after the swap."
    DataChanged "data-changed" [Class::Failed] false false "Data of the users changed while the server was stopped."
    DataReplaced "data-replaced" [] true false "Data was put back as it was saved; what stood there was kept."
    DataUndecided "data-undecided" [Class::NeedsOperator] false false "The new version may have run unwatched: a person decides what becomes of the data."
    DatabaseDamaged "database-damaged" [Class::Failed] false true "A database is damaged."
    Downgrade "downgrade" [Class::Refused] false false "The bundle is older than the installed version."
    DownloadFailed "download-failed" [Class::Failed] false false "The bundle could not be downloaded."
    DuplicateName "duplicate-name" [Class::Refused] false false "Two entries of the bundle have one name, or names that the volume takes for one."
    EmptyBundle "empty-bundle" [Class::Refused] false false "The bundle holds nothing to install."
    Encrypted "encrypted" [Class::Refused] false false "The bundle, or an entry of it, is encrypted."
    EscapeFailed "escape-failed" [Class::Failed] false false "The process that was to run outside of the caller did not begin."
    FolderInTheWay "folder-in-the-way" [Class::Failed] false false "A folder with files of the users lies where a saved file is to be."
    ForeignShim "foreign-shim" [Class::Failed] false false "Another file lies where the drop-in for the legacy server is to be."
    HealthExited "health-exited" [Class::Failed] false true "The new server ended."
    HealthPort "health-port" [Class::Failed] false true "A port of the server is held by something that is no new process of the install."
    HealthStatus "health-status" [Class::Failed] false true "The new server answers worse than the old one."
    HealthTimeout "health-timeout" [Class::Failed] false true "The new server did not answer in time."
    HeldBack "held-back" [] true false "A file of the bundle is not installed, because the users' lies there."
    HookChangedData "hook-changed-data" [Class::Failed] false true "A hook changed data of the users that it does not name."
    HookChangedProgram "hook-changed-program" [Class::Failed] false true "A hook changed a file of the new version."
    HookChangedStaging "hook-changed-staging" [Class::Failed] false false "A hook changed what waits to arrive."
    HookFailed "hook-failed" [Class::Failed] false true "A hook failed."
    HookLeftOut "hook-left-out" [] true false "The version that is put back cannot run a hook."
    HookMade "hook-made" [] true false "A hook made something that it does not name."
    HookOutput "hook-output" [] true false "The end of what a failed hook wrote."
    HookPlace "hook-place" [Class::Failed] false false "A hook names a place that could not be put back."
    HookProgram "hook-program" [Class::Failed] false false "The program of a hook is not there."
    HookTimeout "hook-timeout" [Class::Failed] false true "A hook did not end in time."
    InheritedHandles "inherited-handles" [Class::Failed] false false "What the caller left open cannot be closed."
    Interrupted "interrupted" [Class::Failed, Class::NeedsOperator] true false "A signal asked to stop, or an update was cut off."
    Io "io" [Class::Failed] false false "An error of the system without a code of its own."
    JournalUnreadable "journal-unreadable" [Class::NeedsOperator] false false "The journal of an interrupted update cannot be used."
    KnownBad "known-bad" [Class::Failed] true false "This bundle failed here twice by its own fault."
    LaunchHidden "launch-hidden" [Class::Failed] false false "The command line of the running server cannot be seen."
    LaunchNotText "launch-not-text" [Class::Failed] false false "The command line or environment of the server is no text."
    LeftBehind "left-behind" [Class::NeedsOperator] false false "An updater that ended left something that must be looked at."
    Lock "lock" [Class::Failed] false false "The lock cannot be taken for a reason other than another updater."
    Locked "locked" [Class::Locked] false false "Another updater is working on this install."
    Lost "lost" [Class::NeedsOperator] false false "A part of this updater was killed."
    LyingSize "lying-size" [Class::Refused] false false "An entry of the bundle is larger or smaller than it says."
    Managed "managed" [Class::Failed] false false "The server belongs to a supervisor that would start it again."
    MetadataLost "metadata-lost" [] true false "A file cannot keep an attribute."
    MovedAside "moved-aside" [] true false "Something that the users wrote gave way, and lies in the backup's aside/."
    MultiDisk "multi-disk" [Class::Refused] false false "The bundle is one part of a zip of several."
    NameConflict "name-conflict" [Class::Refused] false false "An entry of the bundle is a file and a folder at once."
    NoAccess "no-access" [Class::Failed] false false "Something cannot be read or entered by this user."
    NoAppFolder "no-app-folder" [Class::Failed] false false "The install has no app/ folder for the drop-in."
    NoBackup "no-backup" [Class::Failed] false false "There is no such backup."
    NoBundle "no-bundle" [Class::Failed, Class::Usage] false false "The bundle does not exist, or none was named."
    NoId "no-id" [Class::Usage] false false "A backup has to be named."
    NoLaunch "no-launch" [Class::Failed] false false "Nothing tells how the server is started."
    NoPort "no-port" [Class::Failed] false false "Nothing tells on which port the stopped server belongs."
    NoReceipt "no-receipt" [Class::Failed] false false "Nothing was installed by this program yet."
    NoRecord "no-record" [Class::Refused] false false "The backup has no record, so nothing tells whether it is whole."
    NoRoot "no-root" [Class::Usage] false false "No install was found."
    NoServiceManager "no-service-manager" [Class::Failed] false false "No service manager runs here."
    NoSpace "no-space" [Class::Failed] false false "The update needs more room than is free."
    NoStartFile "no-start-file" [Class::Refused] false false "The bundle does not hold the file with which the server starts."
    NoUnit "no-unit" [Class::Failed] false false "The service is not known to the service manager."
    NotCleanedUp "not-cleaned-up" [] true false "What is no longer needed could not be removed."
    NotConfirmed "not-confirmed" [Class::Failed] false false "The question was not answered with yes."
    NotInBackup "not-in-backup" [Class::Failed] false false "The backup does not hold what was asked for."
    NotMovable "not-movable" [Class::Failed] false false "Something of the install cannot be moved."
    NotOwner "not-owner" [Class::Failed] false false "The install belongs to another user."
    NotPutBack "not-put-back" [] true false "A large file that nobody had saved was changed, and stays so."
    NotRoot "not-root" [Class::Failed] false false "This needs root."
    NotRoots "not-roots" [Class::Failed] false false "Root must not obey what another user may write."
    NotSaved "not-saved" [] true false "A large file stays in place and is not saved."
    NotTaken "not-taken" [] true false "A file of the bundle is not taken, because the one here was changed."
    NotThisVersion "not-this-version" [Class::Refused] false false "The bundle is not the version that is installed."
    OddPath "odd-path" [Class::Failed] false false "A path is no text, and has to be."
    OldNotStarted "old-not-started" [Class::NeedsOperator] false false "The old version is whole, but its server does not come back."
    OtherApp "other-app" [Class::Refused] false false "The bundle is of another program."
    OtherContent "other-content" [Class::Refused] false false "The bundle is not the one that is installed."
    OtherNamespace "other-namespace" [Class::Failed] false false "The server runs in a network namespace of its own."
    OtherUser "other-user" [Class::Failed] false false "The server runs as another user than the install's owner."
    OtherVolume "other-volume" [Class::Failed] false false "Something lies on another volume than where it would have to be moved."
    OwnLeftOut "own-left-out" [] true false "A file of the bundle lies in the updater's own places, and is left out."
    PackagesNoPip "packages-no-pip" [] true false "The environment of the server has no pip."
    PackagesNotFetched "packages-not-fetched" [Class::Failed] true false "Packages that the new version needs could not be fetched."
    PackagesOutside "packages-outside" [] true false "The server runs from no environment of the install."
    PathTooLong "path-too-long" [Class::Failed] false false "A path of the backup would be too long."
    PortForeign "port-foreign" [Class::Failed] false false "The port is held by a process that is not of the install."
    PortHeld "port-held" [Class::Failed] false false "The port did not become free after the stop."
    PortShared "port-shared" [Class::Failed] false false "The port is held by the server and by another process."
    ProcessesHidden "processes-hidden" [Class::Failed] false false "This system hides processes of other users."
    RecoveryFailed "recovery-failed" [Class::NeedsOperator] false false "An interrupted update could not be settled."
    Respawned "respawned" [Class::Failed] false false "Something starts the server again when it ends."
    RollbackFailed "rollback-failed" [Class::NeedsOperator] false false "Going back to the old version did not succeed."
    RootMoved "root-moved" [Class::Failed] false false "The folder of the install was moved or replaced."
    RootWritable "root-writable" [Class::Failed] false false "Others than root may write in the install."
    RowsLost "rows-lost" [Class::Failed] false true "The new version lost rows of a watched table."
    SchemaDiffers "schema-differs" [Class::Refused] false false "The databases have another schema than those of the backup."
    ServerLog "server-log" [] true false "The end of what the failed server wrote."
    ServerReturned "server-returned" [Class::Failed] false false "Something started the server again during the update."
    SetId "set-id" [Class::Refused] false false "An entry of the bundle would run with another user's rights."
    SettingsExist "settings-exist" [Class::Failed] false false "There is a settings file already."
    SeveralServers "several-servers" [Class::Failed] false false "More than one server of the install runs."
    SpecialFile "special-file" [Class::Refused] false false "An entry of the bundle is no ordinary file, folder or link."
    StopFailed "stop-failed" [Class::Failed] false false "The server could not be stopped."
    TooLarge "too-large" [Class::Failed, Class::Refused] false false "The bundle, or a file of it, is larger than allowed."
    TooManyFiles "too-many-files" [Class::Refused] false false "The bundle holds more files than allowed."
    TwoTopFolders "two-top-folders" [Class::Refused] false false "The bundle has more than one folder at its top, and none fits the install."
    UnitShared "unit-shared" [Class::Failed] false false "The service has processes that are not of the install."
    UnreadableData "unreadable-data" [Class::Failed] false false "Data of the users cannot be read."
    UnsafeProgram "unsafe-program" [Class::Failed] false false "Root must not run a program that others may write."
    UnsupportedSetting "unsupported-setting" [Class::Usage] false false "A key of the settings is not supported yet."
    UnsupportedSource "unsupported-source" [Class::Usage] false false "A bundle cannot be taken from there."
    Usage "usage" [Class::Usage] false false "The command line cannot be understood."
    VolumeMissing "volume-missing" [Class::NeedsOperator] false false "A volume that the update moved files on is not there."
    WouldEndUs "would-end-us" [Class::Failed] false false "Stopping the server would end this updater."
}

impl Code {
    /// The word that stands in JSON.
    pub fn word(self) -> &'static str {
        self.definition().word
    }

    /// True where the bundle itself is at fault: an unattended run skips it after two such ends.
    pub fn is_bundles_fault(self) -> bool {
        self.definition().is_bundles_fault
    }

    /// True where a run can end with this code in this class. A failure after the stop that was rolled back keeps its code.
    pub fn ends_with(self, class: Class) -> bool {
        let ends = self.definition().ends;
        ends.contains(&class) || class == Class::RolledBack || class == Class::NeedsOperator && !ends.is_empty()
    }

    /// Its row in `docs/codes.md`.
    pub fn row(self) -> String {
        let definition = self.definition();
        let exits = definition.ends.iter().map(|class| format!("exit {}", *class as u8));
        let kinds: Vec<String> = exits.chain(definition.warns.then(|| "warning".to_string())).collect();
        let fault = if definition.is_bundles_fault { "yes" } else { "" };
        format!("| `{}` | {} | {fault} | {} |", definition.word, kinds.join(", "), definition.meaning)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_sorted_and_each_stands_once() {
        assert!(Code::ALL.is_sorted_by(|one, next| one.word() < next.word()));
    }
}
