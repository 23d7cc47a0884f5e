//! Files on Linux, by kind of question: `metadata`, `attributes`, `open`, `entries`, `volume`. Here: names as bytes.
//! Refuses to follow a link at the end of a path, except where its target is asked for by an open file.

mod attributes;
mod entries;
mod metadata;
mod open;
mod volume;

pub use attributes::{attributes, copy_attributes, give_attributes, has_default_list, inherit_list, same_attributes};
pub use entries::{
    link_file, link_target, make_folder, make_link, names, private_folder, remove_file, remove_folder, remove_tree,
    rename_new, rename_over,
};
pub use metadata::{
    Folder, allocated, may_write, metadata, metadata_of, mount, obstacle, own_files, set_mode, set_mtime, set_owner,
};
pub use open::{create_new, open_log, open_plain, open_private, open_to_change, open_to_read};
pub use volume::{clone_contents, free_space, may_clone, preallocate, sync_file, sync_folder, sync_tree};

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The bytes of a path, `/` between its parts. Never None on Linux.
pub fn path_to_bytes(path: &Path) -> Option<Vec<u8>> {
    Some(path.as_os_str().as_bytes().to_vec())
}

/// The path of these bytes.
pub fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// The permission bits that a file has here.
pub const MODE_BITS: u32 = 0o7777;

/// Why this system cannot hold a file of this name. None: it can.
pub fn bad_name(_part: &str) -> Option<&'static str> {
    None
}

/// The longest path that a call takes, in bytes (PATH_MAX of `limits.h`, without the final zero).
pub const MAX_PATH: usize = 4095;

/// True for a path that is another file to each process: `/dev/fd/3` of a server is, to us, one of ours.
pub fn is_per_process(path: &Path) -> bool {
    ["/dev", "/proc"].iter().any(|own| path.starts_with(own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::FileType;
    use std::fs::File;
    use std::io;
    use std::io::Write;

    #[test]
    fn facts_describe_a_link_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("f"), dir.path().join("l"));
        std::fs::write(&file, "abc").unwrap();
        make_link(Path::new("f"), &link).unwrap();
        assert_eq!(metadata(&file).unwrap().kind, FileType::File);
        assert_eq!(metadata(&file).unwrap().size, 3);
        assert_eq!(metadata(&link).unwrap().kind, FileType::Link);
        assert_eq!(metadata(dir.path()).unwrap().kind, FileType::Folder);
        assert_eq!(metadata(Path::new("/dev/null")).unwrap().kind, FileType::Other);
        assert_eq!(metadata_of(&File::open(&link).unwrap()).unwrap(), metadata(&file).unwrap());
    }

    #[test]
    fn mode_time_and_owner_never_pass_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("f"), dir.path().join("l"));
        std::fs::write(&file, "abc").unwrap();
        make_link(Path::new("f"), &link).unwrap();
        set_mode(&file, 0o640).unwrap();
        set_mtime(&file, -1_500_000_000).unwrap();
        let before = metadata(&file).unwrap();
        assert_eq!((before.mode, before.mtime), (0o640, -1_500_000_000));
        assert!(set_mode(&link, 0o777).is_err());
        set_mtime(&link, 77).unwrap();
        set_owner(&link, metadata(&link).unwrap().owner).unwrap();
        assert_eq!(metadata(&link).unwrap().mtime, 77);
        assert_eq!(metadata(&file).unwrap(), before);
    }

    #[test]
    fn renames_say_whether_they_replace() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "a").unwrap();
        std::fs::write(&b, "b").unwrap();
        assert_eq!(rename_new(&a, &b).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&b).unwrap(), b"b");
        rename_over(&a, &b).unwrap();
        assert_eq!(std::fs::read(&b).unwrap(), b"a");
        rename_new(&b, &a).unwrap();
        sync_folder(dir.path()).unwrap();
        assert!(sync_folder(&a).is_err());
    }

    #[test]
    fn private_things_are_private_and_keep_their_contents() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = (dir.path().join("d"), dir.path().join("f"));
        private_folder(&folder).unwrap();
        private_folder(&folder).unwrap();
        assert_eq!(metadata(&folder).unwrap().mode, 0o700);
        open_private(&file).unwrap().write_all(b"abc").unwrap();
        assert_eq!(metadata_of(&open_private(&file).unwrap()).unwrap().size, 3);
        assert_eq!(metadata(&file).unwrap().mode, 0o600);
        assert!(private_folder(&file).is_err());
        make_link(Path::new("f"), &dir.path().join("l")).unwrap();
        assert!(open_private(&dir.path().join("l")).is_err());
    }

    #[test]
    fn room_and_clones() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_space(dir.path()).unwrap() > 0);
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "abc").unwrap();
        let to = File::create(&b).unwrap();
        preallocate(&to, 1 << 20).unwrap();
        assert_eq!(metadata(&b).unwrap().size, 0);
        let cloned = clone_contents(&File::open(&a).unwrap(), &to).unwrap();
        assert_eq!(std::fs::read(&b).unwrap(), if cloned { &b"abc"[..] } else { b"" });
        let odd = path_from_bytes(b"a/\xff");
        assert_eq!(path_to_bytes(&odd).unwrap(), b"a/\xff");
    }
}
