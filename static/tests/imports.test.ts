import { describe, expect, it } from 'vitest';
import { archiveKind, titleOf } from '../src/api/imports';

describe('archives', () => {
  it('are known by their names', () => {
    expect(['a.zip', 'A.ZIP', 'a.tar.zst', 'b.tzst', 'a.b.tar.zstd'].map(archiveKind)).toEqual([
      'application/zip',
      'application/zip',
      'application/zstd',
      'application/zstd',
      'application/zstd',
    ]);
    expect(['a.zst', 'a.tar.gz', 'zip', 'a.zip.exe', ''].map(archiveKind)).toEqual([null, null, null, null, null]);
  });
  it('give a title', () => {
    expect(titleOf('my_app-main.zip')).toBe('my_app-main');
    expect(titleOf('Wetter & Wind 🎈.tar.zst')).toBe('Wetter & Wind 🎈');
    expect(titleOf('.zip')).toBe('Imported project');
    expect([...titleOf('🎈'.repeat(200) + '.zip')].length).toBe(100);
  });
});
