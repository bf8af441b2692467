import { ApiError, words } from '../api/client';
import type { Entry } from '../api/types';
import { dirname, isInside, join, nameProblem, shown } from '../lib/paths';
import { ask } from '../stores/ask.svelte';
import { toasts } from '../stores/toasts.svelte';
import type { Workspace } from '../stores/workspace.svelte';

/** What one does with files by their menu and the keys: a question, the call, words when it did not work. */

/** Ask for a name and make it; gives its path, null when nothing was made. */
export async function create(workspace: Workspace, kind: 'file' | 'folder', folder: string): Promise<string | null> {
  const name = await ask.prompt({
    title: kind === 'file' ? 'New file' : 'New folder',
    text: folder ? `In “${shown(folder)}”.` : '',
    action: 'Create',
    problem: nameProblem,
  });
  if (!name) return null;
  const path = join(folder, name);
  const { files } = workspace;
  try {
    if (await exists(workspace, path)) {
      toasts.say(`“${shown(path)}” is there already.`, 'bad');
      return null;
    }
    const parents = path.split('/').slice(0, -1);
    for (let i = 1; i <= parents.length; i += 1) {
      const parent = parents.slice(0, i).join('/');
      if (!(await exists(workspace, parent))) await workspace.api.createFolder(parent);
    }
    if (kind === 'file') await workspace.api.createFile(path);
    else await workspace.api.createFolder(path);
    await files.load(folder);
    await files.reveal(path);
    if (kind === 'file') workspace.open(path, true);
    return path;
  } catch (e) {
    toasts.say(words(e), 'bad');
    return null;
  }
}

async function exists(workspace: Workspace, path: string): Promise<boolean> {
  try {
    await workspace.api.stat(path);
    return true;
  } catch (e) {
    if (e instanceof ApiError && e.status === 404) return false;
    throw e;
  }
}

export async function rename(workspace: Workspace, entry: Entry): Promise<void> {
  const dot = entry.type === 'directory' ? -1 : entry.name.lastIndexOf('.');
  const name = await ask.prompt({
    title: `Rename “${shown(entry.name)}”`,
    action: 'Rename',
    value: entry.name,
    select: dot > 0 ? dot : entry.name.length,
    problem: (v) => (v.includes('/') ? 'Use “Move” to put it elsewhere.' : nameProblem(v)),
  });
  if (name) await workspace.rename(entry.path, join(dirname(entry.path), name));
}

export async function move(workspace: Workspace, entry: Entry): Promise<void> {
  const to = await ask.prompt({
    title: `Move “${shown(entry.name)}”`,
    text: 'Its new path, from the top of the project.',
    action: 'Move',
    label: 'Path',
    value: entry.path,
    problem: (v) => nameProblem(v) ?? (v !== entry.path && isInside(v, entry.path) ? 'A folder cannot go into itself.' : null),
  });
  if (to) await workspace.rename(entry.path, to);
}

export async function remove(workspace: Workspace, entry: Entry): Promise<void> {
  const folder = entry.type === 'directory';
  const sure = await ask.confirm({
    title: `Delete “${shown(entry.name)}”?`,
    text: folder ? `The folder “${shown(entry.path)}” and everything in it is deleted for everybody.` : `“${shown(entry.path)}” is deleted for everybody.`,
    action: folder ? 'Delete folder' : 'Delete file',
    danger: true,
  });
  if (!sure) return;
  try {
    await workspace.api.remove(entry.path);
    for (const tab of workspace.layout.tabs) if (isInside(tab, entry.path)) workspace.close(tab);
    await workspace.files.load(dirname(entry.path));
    if (!folder) toasts.say(`“${shown(entry.name)}” is deleted.`, 'info', { title: 'History', act: () => workspace.showHistory(entry.path) });
  } catch (e) {
    toasts.say(words(e), 'bad');
  }
}
