//! After the stop: what was written since the plan was made is judged again, by the same rules, before anything moves.
//! Refuses to look at what nobody touched: that was judged while the server served.

use super::entries::Planner;
use super::{Action, Plan, PlanInput, Planned, leftovers};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::update::bundle::Bundle;
use anyhow::Result;

/// Judges anew what was touched; `input` holds the census of now. Returns the paths whose action changed its nature or
/// its contents.
pub(super) fn plan_again(input: &PlanInput, bundle: &mut Bundle, plan: &mut Plan) -> Result<Vec<RelPath>> {
    let mut planner = Planner::over(input, std::mem::take(plan))?;
    let mut again = Vec::new();
    for at in 0..planner.plan.actions.len() {
        let was = planner.plan.actions[at].clone();
        if !is_touched(input, &was)? {
            continue;
        }
        let now = match was.entry {
            Some(index) => planner.entry(bundle, index)?,
            None => leftovers::again(input, &mut planner.plan, &was)?,
        };
        again.push(was.path.clone());
        planner.plan.actions[at] = now;
    }
    *plan = planner.plan;
    Ok(again)
}

/// Whether what lies at the path of a change is no longer what the plan was made from. Saved data has a look of its own.
fn is_touched(input: &PlanInput, planned: &Planned) -> Result<bool> {
    if matches!(planned.action, Action::Keep | Action::Unchanged) || planned.saved_data {
        return Ok(false);
    }
    let ownership = input.ownership;
    if let Some(main) = input.census.databases.main_of(&planned.path)
        && !ownership.is_first
        && planned.live.is_some()
    {
        return ownership.is_touched_set(&main);
    }
    Ok(match (planned.live, fsx::metadata(&ownership.root.join(&planned.path))?) {
        (Some(was), Some(is)) => !fsx::is_unchanged(&was, &is),
        (None, None) => false,
        // Something came where nothing was; a folder or link in the way has an undo of its own.
        (None, Some(_)) => planned.action == Action::Add && !ownership.root.join(&planned.path).is_dir(),
        (Some(_), None) => true,
    })
}
