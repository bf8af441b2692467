import { diff } from '@codemirror/merge';
import type { Text, UndoManager } from 'yjs';

/** At `at` in the old text `remove` UTF-16 units go and `insert` comes. */
export interface Edit {
  at: number;
  remove: number;
  insert: string;
}

/**
 * The few edits that make `to` of `from`, last one first, so that each leaves the places of the next alone. None
 * begins or ends within a surrogate pair, of whose halves Yjs would make replacement characters.
 */
export function edits(from: string, to: string): Edit[] {
  return diff(from, to, { scanLimit: 1000 })
    .map(({ fromA, toA, fromB, toB }) => ({ at: fromA, remove: toA - fromA, insert: to.slice(fromB, toB) }))
    .reverse();
}

/**
 * Make a shared text `to` by few edits in one transaction, which is one step of this person's undo. Gives what takes
 * it back, which says false when that would take back something newer; null when there was nothing to change.
 */
export function rewrite(text: Text, undo: UndoManager, to: string): (() => boolean) | null {
  const changes = edits(text.toString(), to);
  if (!changes.length) return null;
  undo.stopCapturing();
  undo.doc.transact(() => {
    for (const { at, remove, insert } of changes) {
      if (remove) text.delete(at, remove);
      if (insert) text.insert(at, insert);
    }
  });
  undo.stopCapturing();
  const step = undo.undoStack.at(-1);
  return () => {
    if (!step || undo.undoStack.at(-1) !== step) return false;
    undo.undo();
    return true;
  };
}
