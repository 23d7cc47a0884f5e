//! Access lists and other extended attributes: on this system they are inherited.
//! Refuses to set any.

use std::io;
use std::path::Path;

/// Access lists are inherited here, so both have the same.
pub fn same_attributes(_one: &Path, _other: &Path) -> io::Result<bool> {
    Ok(true)
}

/// Access lists are inherited here.
pub fn attributes(_path: &Path) -> io::Result<crate::system::Attributes> {
    Ok(Default::default())
}

/// Access lists are inherited here: nothing is given, and nothing is lost.
pub fn give_attributes(_to: &Path, _wanted: &crate::system::Attributes) -> io::Result<Vec<String>> {
    Ok(Vec::new())
}

/// Access lists are inherited here: nothing is given, and nothing is lost.
pub fn copy_attributes(_from: &Path, _to: &Path) -> io::Result<Vec<String>> {
    Ok(Vec::new())
}

/// Every folder passes its access list on here, without our help.
pub fn has_default_list(_folder: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Access lists are inherited here.
pub fn inherit_list(_folder: &Path, _file: &Path) -> io::Result<()> {
    Ok(())
}
