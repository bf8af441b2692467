import * as hub from '../api/hub';
import type { Config, User } from '../api/types';

class Session {
  user = $state<User | null>(null);
  config = $state<Config | null>(null);
  /** `asking` until the hub has said who we are. */
  known = $state<'asking' | 'known' | 'unreachable'>('asking');

  async load(): Promise<void> {
    try {
      this.config = await hub.config();
      this.user = this.config.user;
      this.known = 'known';
    } catch {
      this.known = 'unreachable';
    }
  }

  async logout(): Promise<void> {
    await hub.logout();
    this.user = null;
  }
}

export const session = new Session();
