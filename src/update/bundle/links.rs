//! Where the links of a bundle lead: each is followed over the bundle's own links and those of the install.
//! Refuses a link that leaves the install, that leads in a circle, or whose end is too far to be sure of.

use super::names::{is_forbidden, key};
use super::{Expected, encoding, refused};
use crate::base::error::Code;
use crate::base::path::RelPath;
use crate::state::root::InstallRoot;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// The longest target, in bytes: as long as the longest path of a bundle.
pub(super) const MAX_TARGET: u64 = 1_000;
/// How many links may be passed on the way to one target (Linux follows 40: path_resolution(7), MAXSYMLINKS).
const MAX_HOPS: usize = 40;
/// How many parts may be looked at for all links of a bundle: 10,000 links of twenty each.
const MAX_STEPS: usize = 200_000;

/// Where a link of the install leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// From its own folder, as it is written.
    Relative(String),
    /// From the root of the install, where the link names it in full.
    Root(String),
    Outside,
}

/// The link at `path` in the install; None: there is none. What cannot be read leads outside.
pub fn live_link(root: &InstallRoot, path: &RelPath) -> Option<Target> {
    let full = root.join(path);
    let is_link = std::fs::symlink_metadata(&full).is_ok_and(|data| data.is_symlink());
    is_link.then(|| std::fs::read_link(&full).map_or(Target::Outside, |target| target_of(root, &target)))
}

fn target_of(root: &InstallRoot, target: &Path) -> Target {
    let text = |path: &Path| path.to_str().map(|text| text.replace(std::path::MAIN_SEPARATOR, "/"));
    let found = match target.strip_prefix(root.path()) {
        Ok(below) => text(below).map(Target::Root),
        Err(_) if target.is_relative() => text(target).map(Target::Relative),
        Err(_) => None,
    };
    found.unwrap_or(Target::Outside)
}

/// A link's text, where it is acceptable by itself. Errors (exit 6): it is not.
pub(super) fn target(path: &RelPath, bytes: &[u8], size: u64) -> Result<String> {
    let bad = |why: &str| bad_link(path, why);
    if size > MAX_TARGET || bytes.is_empty() {
        return Err(bad("leads nowhere that can be"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| bad("leads to a name that is no text"))?;
    if text.starts_with('/') || text.contains(['\\', ':']) {
        return Err(bad("does not stay inside the install"));
    }
    if text.chars().any(is_forbidden) {
        return Err(bad("leads to a name with a control character"));
    }
    Ok(text.to_string())
}

fn bad_link(path: &RelPath, why: &str) -> anyhow::Error {
    let name = path.to_string();
    refused(Code::BadLink, &name, format!("the link {} {why}", encoding::shown(&name)))
}

/// Follows every link of the bundle. Errors (exit 6): the first that may not be.
pub(super) fn check(links: &BTreeMap<RelPath, String>, expected: &Expected) -> Result<()> {
    let keyed = links.iter().map(|(path, target)| (key(path, expected), target.as_str()));
    let mut way = EscapeRoute { links: &keyed.collect(), expected, steps: 0 };
    for (path, target) in links {
        let from = Point { at: path.parent(), to_go: Vec::new(), hops: 1 };
        way.follow(from.then(target)).map_err(|why| bad_link(path, why))?;
    }
    Ok(())
}

/// A place on the way.
#[derive(Clone)]
struct Point {
    /// None: the root.
    at: Option<RelPath>,
    /// The parts that are still to be gone, the last first.
    to_go: Vec<Vec<u8>>,
    /// How many links were passed, the first one too.
    hops: usize,
}

impl Point {
    /// The same, where the way goes by the parts of `target` next.
    fn then(mut self, target: &str) -> Point {
        self.to_go.extend(target.split('/').rev().map(|part| part.as_bytes().to_vec()));
        self
    }

    /// The same, where a link at this place is passed that leads from `at` to `target`.
    fn passed(&self, at: Option<RelPath>, target: &str) -> Result<Point, &'static str> {
        let hops = self.hops.saturating_add(1);
        if hops > MAX_HOPS {
            return Err("leads in a circle, or through too many links");
        }
        Ok(Point { at, hops, to_go: self.to_go.clone() }.then(target))
    }
}

struct EscapeRoute<'a> {
    links: &'a BTreeMap<RelPath, &'a str>,
    expected: &'a Expected<'a>,
    /// For all links together.
    steps: usize,
}

impl EscapeRoute<'_> {
    /// Where both the bundle and the install have a link, either may be there in the end: both ways must stay inside.
    fn follow(&mut self, from: Point) -> Result<(), &'static str> {
        let mut open = vec![from];
        while let Some(mut point) = open.pop() {
            while let Some(part) = point.to_go.pop() {
                self.steps = self.steps.saturating_add(1);
                if self.steps > MAX_STEPS {
                    return Err("is one of too many to be followed");
                }
                let above = point.at.clone();
                match part.as_slice() {
                    b"" | b"." => continue,
                    b".." => {
                        point.at = above.ok_or("does not stay inside the install")?.parent();
                        continue;
                    }
                    part => point.at = Some(RelPath::below(above.as_ref(), part)),
                }
                let ways = self.ways(&point, above)?;
                if !ways.is_empty() {
                    open.extend(ways);
                    break;
                }
            }
        }
        Ok(())
    }

    /// The ways from a place, where a link is there. `above`: the folder that it lies in.
    fn ways(&self, point: &Point, above: Option<RelPath>) -> Result<Vec<Point>, &'static str> {
        let Some(path) = &point.at else { return Ok(Vec::new()) };
        let mut ways = Vec::new();
        if let Some(target) = self.links.get(&key(path, self.expected)) {
            ways.push(point.passed(above.clone(), target)?);
        }
        match (self.expected.live_link)(path) {
            None => {}
            Some(Target::Outside) => return Err("leads through a link of the install that leads out of it"),
            Some(Target::Relative(target)) => ways.push(point.passed(above, &target)?),
            Some(Target::Root(target)) => ways.push(point.passed(None, &target)?),
        }
        Ok(ways)
    }
}
