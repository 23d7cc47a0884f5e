//! What happens to each entry of a bundle: whose the place is decides, then the rule for it.

use super::{Action, Aside, Live, Look, Plan, PlanInput, Planned, databases, look};
use crate::app::carry;
use crate::app::merge::{self, MergeError};
use crate::base::error::{self, Code, Failure};
use crate::base::fsx;
use crate::base::head::Head;
use crate::base::path::RelPath;
use crate::state::root::InstallRoot;
use crate::system::{FileMetadata, FileType, files};
use crate::update::bundle::{Bundle, Entry};
use crate::update::ownership::{Class, Databases, Rules};
use anyhow::{Context, Result};

/// A plan that is being made.
pub(super) struct Planner<'a> {
    pub(super) input: &'a PlanInput<'a>,
    pub(super) plan: Plan,
    /// The start file that lies there now.
    pub(super) start: Option<FileMetadata>,
    databases: Option<Databases>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(input: &'a PlanInput<'a>) -> Result<Self> {
        let root = &input.ownership.root;
        let mut plan = Plan::default();
        for (path, metadata) in input.census.of(Class::Shipped) {
            let sha256 = fsx::sha256_of(&root.join(path))?;
            plan.shipped.insert(path.clone(), Live { metadata: *metadata, sha256 });
        }
        let start = fsx::metadata(&root.join(input.start_file))?;
        Ok(Self { input, plan, start, databases: None })
    }

    /// Goes on with a plan that was made before.
    pub(super) fn over(input: &'a PlanInput<'a>, plan: Plan) -> Result<Self> {
        let start = fsx::metadata(&input.ownership.root.join(input.start_file))?;
        Ok(Self { input, plan, start, databases: None })
    }

    fn root(&self) -> &'a InstallRoot {
        &self.input.ownership.root
    }

    pub(super) fn planned(
        &self,
        action: Action,
        (entry, index): (&Entry, usize),
        live: Option<FileMetadata>,
        reason: &str,
    ) -> Planned {
        let listed = !matches!(action, Action::Keep | Action::Remove) && !entry.data;
        Planned { listed, entry: Some(index), live, ..Planned::new(action, &entry.path, reason) }
    }

    /// The hash of what lies at `path`.
    pub(super) fn hash_of(&self, path: &RelPath, live: &FileMetadata) -> Result<String> {
        match self.plan.shipped.get(path) {
            Some(known) if fsx::is_unchanged(&known.metadata, live) => Ok(known.sha256.clone()),
            _ => fsx::sha256_of(&self.root().join(path)),
        }
    }

    /// True when the entry is a part of the program. The start file always is. A mode tells nothing: zips from some
    /// volumes let everybody execute everything.
    pub(super) fn is_program(&self, entry: &Entry) -> bool {
        let profile = self.input.ownership.rules.profile;
        entry.path == *self.input.start_file || profile.is_program(&entry.path, entry.head)
    }

    /// Keeps an entry out, by name.
    fn held_back(&mut self, entry: &Entry, index: usize, live: Option<FileMetadata>, reason: &str) -> Planned {
        self.plan.held_back.push(entry.path.clone());
        self.planned(Action::Keep, (entry, index), live, reason)
    }

    /// What happens to the entry at `index`.
    pub(super) fn entry(&mut self, bundle: &mut Bundle, index: usize) -> Result<Planned> {
        let entry = bundle.entries[index].clone();
        let ownership = self.input.ownership;
        let found = look(self.root(), &entry.path)?;
        let metadata = if let Look::There(metadata) = &found { Some(*metadata) } else { None };
        if ownership.is_own(&entry.path, metadata.as_ref()) || ownership.rules.is_alias_of_own(&entry.path) {
            if !ownership.rules.is_own_log(&entry.path) {
                self.plan.left_out.push(entry.path.clone());
            }
            return Ok(self.planned(Action::Keep, (&entry, index), None, "a place of the updater's own"));
        }
        if entry.data {
            if let Look::Behind(above, FileType::File) = &found
                && self.leaves(above)?
            {
                let planned = self.planned(Action::Add, (&entry, index), None, "saved data");
                return Ok(Planned { saved_data: true, ..planned });
            }
            return restored(self.root(), index, &entry, &ownership.rules);
        }
        if ownership.line(&entry.path).is_none() && ownership.is_in_users_environment(&entry.path)? {
            return Ok(self.held_back(&entry, index, metadata, "an environment of the install's own is never touched"));
        }
        match found {
            Look::Behind(above, kind) => self.behind(&entry, index, &above, kind),
            Look::There(metadata) if self.is_to_carry(&entry, &metadata) => self.carried(bundle, index, metadata),
            Look::There(metadata) if ownership.rules.merge.contains(&entry.path) && metadata.kind == FileType::File => {
                self.merged(bundle, index, metadata)
            }
            found => self.at_place(bundle, index, found),
        }
    }

    fn at_place(&mut self, bundle: &mut Bundle, index: usize, found: Look) -> Result<Planned> {
        let entry = bundle.entries[index].clone();
        let ownership = self.input.ownership;
        let known = self.databases.get_or_insert_with(|| databases(self.input.census, bundle));
        let main = known.main_of(&entry.path).or_else(|| (entry.head == Head::Sqlite).then(|| entry.path.clone()));
        if let Some(main) = main {
            return self.database(bundle, index, &main, found);
        }
        let by_rule = ownership.rules.is_data(&entry.path, false);
        match found {
            Look::There(metadata) if metadata.kind == FileType::Folder && by_rule => {
                Ok(self.held_back(&entry, index, Some(metadata), "a folder of the users' lies there"))
            }
            Look::There(metadata) if metadata.kind == FileType::Folder => self.folder_in_the_way(&entry, index),
            Look::There(metadata) => {
                let item = self.input.census.items.get(&entry.path);
                let is_shipped = item.is_some_and(|item| item.class == Class::Shipped);
                if metadata.kind == FileType::Link
                    && ownership.line(&entry.path).is_none()
                    && !self.is_same(&entry, &metadata)?
                {
                    return Ok(self.held_back(&entry, index, Some(metadata), "a link of the users' lies there"));
                }
                if is_shipped { self.by_base(bundle, index, metadata) } else { self.users(&entry, index, metadata) }
            }
            _ if by_rule && is_elsewhere(self.root(), &entry.path)? => {
                Ok(self.held_back(&entry, index, None, "its folder lies on another volume"))
            }
            _ => Ok(self.planned(Action::Add, (&entry, index), None, "new")),
        }
    }

    fn is_same(&self, entry: &Entry, live: &FileMetadata) -> Result<bool> {
        let plain = matches!(live.kind, FileType::File | FileType::Link);
        let same_kind = plain && (live.kind == FileType::Link) == entry.link.is_some();
        let same_size = live.kind == FileType::Link || live.size == entry.size;
        Ok(same_kind && same_size && self.hash_of(&entry.path, live)? == entry.sha256)
    }

    /// A file that no version shipped lies where the bundle has one: it stays.
    fn users(&mut self, entry: &Entry, index: usize, live: FileMetadata) -> Result<Planned> {
        if self.is_same(entry, &live)? {
            // At a data path it stays the users' whatever it holds; elsewhere it is the release's from now on.
            let listed = !self.input.ownership.rules.is_data(&entry.path, false);
            return Ok(Planned {
                listed,
                ..self.planned(Action::Unchanged, (entry, index), Some(live), "same content")
            });
        }
        Ok(self.held_back(entry, index, Some(live), "a file of the users' lies there"))
    }

    /// What the version before shipped, nobody changed, and the bundle lacks, leaves.
    fn leaves(&self, path: &RelPath) -> Result<bool> {
        let ownership = self.input.ownership;
        let Some(metadata) = fsx::metadata(&self.root().join(path))? else { return Ok(false) };
        Ok(!ownership.is_bundled(path) && ownership.is_released(path, &metadata)?)
    }

    /// Something that is no folder stands where a folder of the bundle belongs.
    fn behind(&mut self, entry: &Entry, index: usize, above: &RelPath, kind: FileType) -> Result<Planned> {
        let ownership = self.input.ownership;
        let by_rule = ownership.rules.is_data(above, false) || ownership.is_own(above, None);
        if self.leaves(above)? && !by_rule {
            return Ok(self.planned(Action::Add, (entry, index), None, "new"));
        }
        if kind == FileType::File && !by_rule && !Databases::is_named(above) {
            if !self.plan.aside.iter().any(|one| one.path == *above) {
                self.plan.aside.push(Aside { path: above.clone(), reason: "in the way of a folder of the bundle" });
            }
            return Ok(self.planned(Action::Add, (entry, index), None, "new"));
        }
        if kind == FileType::Link && !ownership.rules.is_data(&entry.path, false) && self.is_program(entry) {
            return Err(behind_link(&entry.path, above).into());
        }
        let reason = format!("{above} is {} here", if kind == FileType::Link { "a link" } else { "no folder" });
        Ok(self.held_back(entry, index, None, &reason))
    }

    /// A folder stands where a file of the bundle belongs: what the users have in it gives way, unless a rule names it.
    fn folder_in_the_way(&mut self, entry: &Entry, index: usize) -> Result<Planned> {
        let ownership = self.input.ownership;
        for (path, item) in self.input.census.items.iter().filter(|(path, _)| path.is_within(&entry.path)) {
            let is_kept = ownership.rules.is_data(path, false) || self.input.census.databases.main_of(path).is_some();
            if is_kept {
                return Err(in_the_way(self.root(), &entry.path).into());
            }
            let leaves = item.class == Class::Shipped && ownership.is_released(path, &item.metadata)?;
            if !leaves {
                self.plan.aside.push(Aside { path: path.clone(), reason: "in the way of a file of the bundle" });
            }
        }
        Ok(self.planned(Action::Add, (entry, index), None, "new"))
    }

    fn is_to_carry(&self, entry: &Entry, live: &FileMetadata) -> bool {
        let names = self.input.ownership.rules.carry.get(&entry.path);
        names.is_some() && live.kind == FileType::File && entry.link.is_none()
    }

    /// The settings file that lies at the place of `entry`. Errors: it is too large for one.
    fn live_settings(&self, entry: &Entry) -> Result<Vec<u8>> {
        let bytes = fsx::read_at_most(&self.root().join(&entry.path), carry::MAX_SIZE)?;
        let message = || format!("{} has more than {} bytes: it is no settings file", entry.path, carry::MAX_SIZE);
        Ok(bytes.ok_or_else(|| {
            Failure::failed(Code::CannotCarry, message())
                .at(&entry.path)
                .remedy("take it out of [preserve] carry and merge_json, or make it smaller")
        })?)
    }

    /// The bundle's settings file with the settings of this install.
    fn carried(&mut self, bundle: &mut Bundle, index: usize, live: FileMetadata) -> Result<Planned> {
        let entry = bundle.entries[index].clone();
        let rules = &self.input.ownership.rules;
        let Some(names) = rules.carry.get(&entry.path) else { return self.by_base(bundle, index, live) };
        let (old, new) = (self.live_settings(&entry)?, bundle.read_entry(index, carry::MAX_SIZE)?);
        let is_target = rules.carry.keys().next() == Some(&entry.path);
        let set: &[(String, String)] = if is_target { self.input.set } else { &[] };
        let done = carry::carry(&new, &old, names, set).map_err(|e| {
            Failure::failed(Code::CannotCarry, format!("the settings of {} cannot be carried over: {e}", entry.path))
                .at(&entry.path)
                .remedy("write the assignment on one line at the start of the line, or drop it from [preserve] carry")
        })?;
        let without = carry::carry(&old, &old, names, set).map(|c| c.bytes != old).unwrap_or(true);
        self.plan.set_changes |= !set.is_empty() && without;
        if done.bytes == old {
            return Ok(self.planned(Action::Unchanged, (&entry, index), Some(live), "same content"));
        }
        let line = self.input.ownership.line(&entry.path).cloned();
        let aside = match line {
            Some(line) => self.is_edited(&line, &old, names)?,
            None => false,
        };
        if aside {
            self.plan.changed_here.push(entry.path.clone());
            if set.is_empty() && !self.input.heal && self.is_as_before(&entry)? {
                return Ok(self.kept(&entry, index, live, "changed here, and not by the release"));
            }
        }
        let planned =
            self.planned(Action::Carry, (&entry, index), Some(live), "new content with the settings of this install");
        Ok(Planned { content: Some(done.bytes), aside, ..planned })
    }

    /// The live settings file with the keys of the bundle that it lacks.
    fn merged(&mut self, bundle: &mut Bundle, index: usize, live: FileMetadata) -> Result<Planned> {
        let entry = bundle.entries[index].clone();
        if entry.link.is_some() {
            return Ok(self.held_back(&entry, index, Some(live), "a file of the users' lies there"));
        }
        let (old, new) = (self.live_settings(&entry)?, bundle.read_entry(index, carry::MAX_SIZE)?);
        let merged = merge::merge_json(&old, &new).map_err(|e| {
            let is_bundles = matches!(e, MergeError::New(_));
            let class = if is_bundles { error::Class::Refused } else { error::Class::Failed };
            Failure::new(class, Code::BadJson, format!("{} cannot be merged: {e}", entry.path))
                .at(&entry.path)
                .remedy("correct the file, or take it out of [preserve] merge_json")
        })?;
        Ok(match merged {
            Some(content) => {
                let reason = "new keys are added, existing values kept";
                Planned { content: Some(content), ..self.planned(Action::Merge, (&entry, index), Some(live), reason) }
            }
            None => self.planned(Action::Keep, (&entry, index), Some(live), "it holds every key already"),
        })
    }

    /// What happens to a file of a database set.
    fn database(&mut self, bundle: &Bundle, index: usize, main: &RelPath, found: Look) -> Result<Planned> {
        let entry = bundle.entries[index].clone();
        let ownership = self.input.ownership;
        let live = if let Look::There(metadata) = found { Some(metadata) } else { None };
        if entry.path != *main {
            return Ok(self.held_back(&entry, index, live, "a log of a database is never written"));
        }
        if is_unfinished(bundle, main) {
            return Ok(self.held_back(&entry, index, live, "a part of this database lies in a log of the bundle"));
        }
        if ownership.members_there(main)?.is_empty() {
            let in_data_folder = main.parent().is_some_and(|folder| ownership.rules.is_data(&folder, true));
            // A saved version has its own.
            let is_saved = entry.owner().is_some();
            if in_data_folder && !is_saved && !ownership.rules.add_databases {
                return Ok(self.held_back(&entry, index, None, "a database is not added in a folder of the users'"));
            }
            if in_data_folder && is_elsewhere(self.root(), main)? {
                return Ok(self.held_back(&entry, index, None, "its folder lies on another volume"));
            }
            return Ok(self.planned(Action::Add, (&entry, index), None, "new"));
        }
        match live {
            Some(metadata) if !ownership.is_touched_set(main)? => {
                if self.is_same(&entry, &metadata)? {
                    return Ok(self.same(&entry, index, metadata));
                }
                Ok(self.planned(Action::Replace, (&entry, index), Some(metadata), "new content; it is as installed"))
            }
            _ => Ok(self.held_back(&entry, index, live, "a database of the users' lies there")),
        }
    }
}

/// True when the bundle has a log of this database that says something: a part of it lies there.
fn is_unfinished(bundle: &Bundle, main: &RelPath) -> bool {
    let known = Databases::with([main.clone()]);
    let is_log = |e: &&Entry| e.path != *main && known.main_of(&e.path).as_ref() == Some(main);
    bundle.entries.iter().filter(is_log).any(|e| e.size > 0)
}

/// What is at the path of saved data. A data folder at the top may be a link.
fn look_at_data(root: &InstallRoot, path: &RelPath, rules: &Rules) -> Result<Look> {
    let top = path.top();
    match look(root, path)? {
        Look::Behind(above, FileType::Link)
            if above == top && rules.is_data(&top, false) && root.join(&top).is_dir() =>
        {
            Ok(fsx::metadata(&root.join(path))?.map_or(Look::Missing, Look::There))
        }
        found => Ok(found),
    }
}

/// What happens to saved data that is put back.
pub(super) fn restored(root: &InstallRoot, index: usize, entry: &Entry, rules: &Rules) -> Result<Planned> {
    let planned = |action, live, reason: &str| Planned {
        entry: Some(index),
        live,
        saved_data: true,
        ..Planned::new(action, &entry.path, reason)
    };
    let metadata = match look_at_data(root, &entry.path, rules)? {
        Look::Behind(above, _) => {
            return Err(Failure::failed(Code::CannotRestore, format!("{above} is no folder here"))
                .at(&entry.path)
                .remedy(format!("make {above} a folder again, or restore without --data"))
                .into());
        }
        Look::Missing => return Ok(planned(Action::Add, None, "saved data")),
        Look::There(metadata) => metadata,
    };
    if metadata.kind == FileType::Folder {
        return Err(in_the_way(root, &entry.path).into());
    }
    let same = (metadata.kind == FileType::Link) == entry.link.is_some()
        && (entry.link.is_some() || (metadata.mode == entry.mode && metadata.size == entry.size))
        && fsx::sha256_of(&root.join(&entry.path))? == entry.sha256;
    let action = if same { Action::Unchanged } else { Action::Replace };
    Ok(planned(action, Some(metadata), if same { "same content" } else { "saved data" }))
}

pub(super) fn in_the_way(root: &InstallRoot, path: &RelPath) -> Failure {
    Failure::failed(Code::FolderInTheWay, format!("{path} is a folder here and a file in what is to be installed"))
        .at(path)
        .remedy(format!("move the folder away: mv '{0}' '{0}.old'", root.join(path).display()))
}

pub(super) fn behind_link(path: &RelPath, link: &RelPath) -> Failure {
    Failure::failed(
        Code::CodeBehindLink,
        format!("{path} is a part of the program, and {link} above it is a link here"),
    )
    .at(link)
    .remedy(format!("make {link} a folder that holds what the link leads to, then update again"))
}

/// Nothing can be moved to a folder that is a mount of another volume.
fn is_elsewhere(root: &InstallRoot, path: &RelPath) -> Result<bool> {
    let own = files::metadata(root.path()).context("looking at the install")?.volume;
    for above in path.ancestors().iter().rev() {
        if let Some(metadata) = fsx::metadata(&root.join(above))? {
            return Ok(metadata.volume != own);
        }
    }
    Ok(false)
}
