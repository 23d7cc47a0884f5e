//! The line of parents above a process.
//! Refuses to walk for ever: a pid that is given to another process in the middle could make a circle.

use super::{ProcessId, processes};
use std::io;

/// The most parents that are looked at: no real tree is as deep.
const DEEPEST: usize = 4096;

/// The pids above `pid`, the nearest first, by whatever knows the `parent` of one. Each is looked up when it is asked for,
/// and an error ends the line.
pub fn above<E>(
    pid: u32,
    mut parent: impl FnMut(u32) -> Result<Option<u32>, E>,
) -> impl Iterator<Item = Result<u32, E>> {
    let mut seen = vec![pid];
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over || seen.len() > DEEPEST {
            return None;
        }
        let next = parent(*seen.last()?);
        match next {
            Ok(Some(next)) if !seen.contains(&next) => {
                seen.push(next);
                Some(Ok(next))
            }
            Ok(_) => None,
            Err(error) => {
                is_over = true;
                Some(Err(error))
            }
        }
    })
}

/// The pids above `pid` now, the nearest first.
pub fn ancestors(pid: u32) -> impl Iterator<Item = io::Result<u32>> {
    above(pid, processes::parent)
}

/// True when `pid` is one of these processes, or descends from one.
pub fn is_below(pid: u32, tops: &[ProcessId]) -> io::Result<bool> {
    for pid in std::iter::once(Ok(pid)).chain(ancestors(pid)) {
        if processes::identity(pid?)?.is_some_and(|id| tops.contains(&id)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks a made-up tree of children and parents.
    fn walk(tree: &'static [(u32, u32)], pid: u32) -> Vec<u32> {
        let parent = |pid| Ok(tree.iter().find(|(child, _)| *child == pid).map(|(_, parent)| *parent));
        above(pid, parent).collect::<Result<_, ()>>().unwrap()
    }

    #[test]
    fn a_line_ends_at_the_top_and_a_circle_where_it_began() {
        assert_eq!(walk(&[(3, 2), (2, 1)], 3), [2, 1]);
        assert_eq!(walk(&[(3, 2), (2, 1)], 1), [0; 0]);
        assert_eq!(walk(&[(3, 2), (2, 1), (1, 3)], 3), [2, 1]);
        assert_eq!(walk(&[(3, 2), (2, 1), (1, 2)], 3), [2, 1]);
        assert_eq!(walk(&[(3, 3)], 3), [0; 0]);
        let endless = above(1, |pid| Ok::<_, ()>(Some(pid + 1)));
        assert_eq!(endless.count(), DEEPEST);
    }

    #[test]
    fn an_error_is_met_only_by_who_walks_so_far() {
        let parent = |pid| if pid == 2 { Err("hidden") } else { Ok(Some(pid - 1)) };
        assert!(above(4, parent).any(|pid| pid == Ok(3)));
        assert_eq!(above(4, parent).collect::<Vec<_>>(), [Ok(3), Ok(2), Err("hidden")]);
    }

    #[test]
    fn we_are_below_ourselves_and_our_parent() {
        let own = processes::identity(std::process::id()).unwrap().unwrap();
        let parent = ancestors(own.pid).next().unwrap().unwrap();
        let parent = processes::identity(parent).unwrap().unwrap();
        assert!(is_below(own.pid, &[own]).unwrap() && is_below(own.pid, &[parent]).unwrap());
        let stale = ProcessId { start: own.start + 1, ..own };
        assert!(!is_below(own.pid, &[stale]).unwrap());
    }
}
