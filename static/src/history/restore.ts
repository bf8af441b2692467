import { words } from '../api/client';
import { rewrite } from '../lib/edits';
import { basename, dirname, shown } from '../lib/paths';
import { toasts } from '../stores/toasts.svelte';
import type { Workspace } from '../stores/workspace.svelte';

/** Write the version into the open document as an ordinary edit, and say how it is taken back. */
export function restoreLive(workspace: Workspace, path: string, text: string, when: string): void {
  const live = workspace.docs.get(path)?.live;
  if (!live) return;
  const undo = rewrite(live.text, live.undo, text);
  if (!undo) {
    toasts.say('The file is like that already.');
    return;
  }
  toasts.say(`“${shown(basename(path))}” is as it was ${when}.`, 'info', {
    title: 'Undo',
    act: () => {
      if (!undo()) toasts.say('It was edited since, or taken back already. Take single steps back with Ctrl+Z, or choose another version of its history.');
    },
  });
}

/** Write a version's bytes: a file that is gone, or one that is no text. Says whether it worked. */
export async function restoreBytes(workspace: Workspace, path: string, blob: Blob, when: string): Promise<boolean> {
  const { api, files } = workspace;
  try {
    const before = await api.blob(path).catch(() => null);
    if (!before) await makeParents(workspace, path);
    await api.upload(path, blob);
    await workspace.docs.get(path)?.load();
    await files.load(dirname(path));
    const name = shown(basename(path));
    if (!before) toasts.say(`“${name}” is back, as it was ${when}.`);
    else
      toasts.say(`“${name}” is as it was ${when}.`, 'info', {
        title: 'Undo',
        act: () =>
          void api.upload(path, before).then(
            () => workspace.docs.get(path)?.load(),
            (e: unknown) => toasts.say(words(e), 'bad'),
          ),
      });
    return true;
  } catch (e) {
    toasts.say(words(e), 'bad');
    return false;
  }
}

async function makeParents(workspace: Workspace, path: string): Promise<void> {
  const parts = path.split('/').slice(0, -1);
  for (let i = 1; i <= parts.length; i += 1) {
    const folder = parts.slice(0, i).join('/');
    if (!(await workspace.api.stat(folder).catch(() => null))) await workspace.api.createFolder(folder);
  }
}
